"""A run on Flower's simulation: Ray's workers, on one machine or on a cluster, train; the virtual clock is ours."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhybrid.engine import Assemble, Federation, PlanBook, Progress, RunFolder, assemble
from fedhybrid.engine.labour import Labour
from fedhybrid.engine.traffic import Traffic
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import RunResult, run
from fedhybrid.experiment.check import Recipe, load_config
from fedhybrid.integrations.flower.brief import brief_of_run
from fedhybrid.integrations.flower.simulated.app import client_app
from fedhybrid.integrations.flower.simulated.labour import GridLabour
from fedhybrid.integrations.flower.simulated.mailbox import Mailbox, open_mailbox
from fedhybrid.integrations.flower.version import require_flower

__all__ = ["on_grid", "simulate"]


def on_grid(
    grid: Grid,
    *,
    open_mailbox: Callable[[], Mailbox] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Assemble:
    """For `fh.run`'s `assemble`: the engine with its virtual clock, whose clients are trained by the nodes of a grid.

    Args:
        grid: Has at least as many nodes as the recipe has clients.
        open_mailbox: See `GridLabour`.
        wait: The same.
    """

    def labour(job: Federation, folder: RunFolder, book: PlanBook, traffic: Traffic) -> Labour:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) < len(job.shards):
            raise ConfigError(f"the recipe has {len(job.shards)} clients, the grid only {len(nodes)} nodes")
        return GridLabour(
            grid,
            nodes,
            brief=brief_of_run(folder.path),
            attend=job.attend,
            book=book,
            open_mailbox=open_mailbox,
            wait=wait,
        )

    return partial(assemble, labour=labour)


def simulate(
    recipe: Recipe,
    *,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    cpus_per_client: float = 1.0,
    gpus_per_client: float = 0.0,
    ray_address: str | None = None,
) -> RunResult:
    """As `fh.run`, with Flower's simulation doing the clients' work; records, plans and weights are those of `fh.run`.

    Args:
        recipe: As for `fh.run`.
        out: The same.
        overrides: The same.
        resume: The same.
        progress: The same.
        cpus_per_client: Processors that each of Ray's workers takes: it decides how many there are.
        gpus_per_client: The same of graphics processors.
        ray_address: Of a running Ray cluster ("auto" finds it from one of its machines); without it Ray starts here.

    Raises:
        ConfigError: Flower or Ray is missing; or as for `fh.run`.
    """
    require_flower(simulation=True)
    from flwr.simulation import run_simulation  # noqa: PLC0415 - it imports Ray

    clients = load_config(recipe, overrides).data.clients
    found: list[RunResult] = []
    broken = threading.Event()

    def wait(seconds: float) -> None:
        if broken.wait(seconds):
            raise RuntimeError("Flower's simulation has ended before the run did; its log says why")

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        there = on_grid(grid, open_mailbox=partial(open_mailbox, wait), wait=wait)
        found.append(run(recipe, out=out, overrides=overrides, resume=resume, progress=progress, assemble=there))

    logging.getLogger("flwr").setLevel(logging.ERROR)
    # "local": without an address Ray would join a cluster that it finds here, or wait for one that was killed.
    address = ray_address or "local"
    init_args: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "address": address}
    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=clients,
            backend_config={
                "client_resources": {"num_cpus": cpus_per_client, "num_gpus": gpus_per_client},
                "init_args": init_args,
            },
        )
    finally:
        broken.set()  # or the thread of the run would wait for ever where the simulation could not start
    (result,) = found
    return result
