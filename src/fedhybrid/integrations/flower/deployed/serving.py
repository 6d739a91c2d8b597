"""The server of a deployment: a superlink of its own, the nodes' keys, and the run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from fedhybrid.engine import Progress
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import RunResult, run
from fedhybrid.experiment.check import Recipe, load_config, to_table, variants_of
from fedhybrid.experiment.config import RunConfig
from fedhybrid.integrations.flower.deployed.world import deployed
from fedhybrid.integrations.flower.link.control import register_nodes, start_run
from fedhybrid.integrations.flower.link.grid import open_run_grid
from fedhybrid.integrations.flower.link.keyfiles import read_public_key
from fedhybrid.integrations.flower.link.keys import KeyFolder, read_keys
from fedhybrid.integrations.flower.link.superlink import Superlink
from fedhybrid.integrations.flower.version import require_flower

__all__ = ["serve"]

_CHECK_S = 2.0


def serve(
    recipe: Recipe,
    *,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    keys: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    nodes: int | None = None,
    within_s: float = 600.0,
    variant: str | None = None,
    insecure: bool = False,
    on_news: Callable[[str], None] = print,
) -> RunResult:
    """As `fh.run`, with the nodes that join as the clients, in real time; they are let go at the end.

    Args:
        recipe: As for `fh.run`; its tiers mean nothing here, nodes say what they are.
        out: The run's folder.
        overrides: As for `fh.run`.
        resume: The same. Nodes that are still there come back by themselves.
        progress: The same.
        keys: The folder that `fedhybrid flower keys` made; keys of nodes that are added to it later are let in, too.
        host: To listen at.
        port: The same; 0 takes a free one.
        nodes: So many must have joined before the first round; by default as many as a round asks.
        within_s: In this time.
        variant: Which one to run of a recipe that compares several.
        insecure: No encryption, and anybody may join; without `keys`.
        on_news: Hears what happens, a line each.

    Raises:
        ConfigError: As for `fh.run`; missing or damaged keys; a port that is taken; too few nodes in time.
    """
    require_flower()
    config = _one_of(load_config(recipe, overrides), variant)
    folder = None if keys is None else read_keys(keys)
    wanted = config.fleet.clients_per_round if nodes is None else nodes
    if not 1 <= wanted <= config.data.clients:
        raise ConfigError(f"--nodes must be 1 to data.clients, which is {config.data.clients}, got {wanted}")
    with (
        tempfile.TemporaryDirectory(prefix="fedhybrid-superlink-") as own,
        Superlink(own, keys=folder, host=host, port=port, insecure=insecure) as superlink,
    ):
        doors = _Doors(superlink=superlink, keys=keys, on_news=on_news)
        doors.let_in()
        run_id = start_run(superlink)
        how = "without encryption" if insecure else "with TLS and node authentication"
        on_news(
            f"listening at {host}:{superlink.port} {how}; waiting for {wanted} {'node' if wanted == 1 else 'nodes'}"
        )
        with open_run_grid(superlink, run_id) as grid:
            there = deployed(
                grid,
                nodes=wanted,
                within_s=within_s,
                wait=doors.wait,
                on_news=on_news,
                name_of_key=doors.names.get,
            )
            return run(to_table(config), out=out, resume=resume, progress=progress, assemble=there)


def _one_of(config: RunConfig, variant: str | None) -> RunConfig:
    """A deployment runs one configuration."""
    variants = variants_of(config)
    if not variants and variant is None:
        return config
    labels = ", ".join(variants) or "none"
    if variant is None:
        raise ConfigError(f"the recipe compares several runs, a deployment does one: give --variant (one of {labels})")
    if variant not in variants:
        raise ConfigError(f"--variant {variant!r}: the recipe has no such variant; known: {labels}")
    return variants[variant]


@final
@dataclass(kw_only=True)
class _Doors:
    """Looks after the superlink while the run waits: whether it lives, and whose keys have been added."""

    superlink: Superlink
    keys: Path | None
    on_news: Callable[[str], None]
    known: frozenset[str] = frozenset()
    names: dict[int, str] = field(default_factory=dict)
    checked_s: float = 0.0

    def let_in(self) -> None:
        """Registers the nodes whose public keys are there now."""
        if self.keys is None:
            return
        folder: KeyFolder = read_keys(self.keys)
        new = [name for name in folder.node_names if name not in self.known]
        if new:
            numbers = register_nodes(self.superlink, [read_public_key(folder.node_public_key(name)) for name in new])
            self.names |= dict(zip(numbers, new, strict=True))
            self.on_news(f"registered {', '.join(new)}")
            self.known = frozenset(folder.node_names)

    def wait(self, seconds: float) -> None:
        """Lets time pass."""
        time.sleep(seconds)
        if time.monotonic() - self.checked_s > _CHECK_S:
            self.checked_s = time.monotonic()
            self.superlink.check()
            self.let_in()
