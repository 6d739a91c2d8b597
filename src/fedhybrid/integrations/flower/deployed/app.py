"""The ServerApp for people who start apps with `flwr run`: a recipe in the run's configuration, its folder out.

Its other half is `simulated/app.py`. In the app's pyproject.toml:

    [tool.flwr.app.components]
    serverapp = "fedhybrid.integrations.flower.deployed.app:server_app"
    clientapp = "fedhybrid.integrations.flower.simulated.app:client_app"
    [tool.flwr.app.config]
    recipe = "recipes/federations/fashion-mnist.toml"
    out = "runs/fashion"
    nodes = 3
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhybrid.errors import ConfigError
from fedhybrid.experiment import run
from fedhybrid.integrations.flower.deployed.world import deployed

__all__ = ["server_app"]

server_app = ServerApp()
_KNOWN = ("nodes", "out", "recipe", "within-s")


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
    """Runs the recipe with the nodes that join, in real time; goes on where a run in the folder has stopped.

    Raises:
        ConfigError: Settings that are missing or that there are not; or as for `fh.run`.
    """
    config = context.run_config
    problems = [f"run config: {name} is missing" for name in ("recipe", "out") if not isinstance(config.get(name), str)]
    problems += [
        f"run config: there is no setting {name!r}; known: {', '.join(_KNOWN)}"
        for name in sorted(config.keys() - {*_KNOWN})
    ]
    nodes, within_s = config.get("nodes", 2), config.get("within-s", 600.0)
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        problems.append(f"run config: nodes must be a whole number from 1 on, got {nodes!r}")
    if isinstance(within_s, bool) or not isinstance(within_s, (int, float)) or within_s <= 0:
        problems.append(f"run config: within-s must be a positive number of seconds, got {within_s!r}")
    if problems:
        raise ConfigError(problems)
    there = deployed(grid, nodes=int(nodes), within_s=float(within_s), on_news=print)
    run(Path(str(config["recipe"])), out=Path(str(config["out"])), resume=True, assemble=there)
