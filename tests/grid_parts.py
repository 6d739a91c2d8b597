"""Runs of one recipe in process and on the in-memory grid, and whether they are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fedhybrid as fh
from tests.run_parts import rounds_of


def run_on_local_grid(table: dict[str, Any], out: Path) -> None:
    """Runs a recipe whose clients are nodes of a grid in this process; needs Flower."""
    from fedhybrid.integrations.flower.simulated.app import client_app  # noqa: PLC0415 - Flower is optional
    from fedhybrid.integrations.flower.simulated.local_grid import LocalGrid  # noqa: PLC0415
    from fedhybrid.integrations.flower.simulated.simulation import on_grid  # noqa: PLC0415

    clients = table["data"]["clients"]
    grid = LocalGrid(client_app, {100 + n: {"partition-id": n, "num-partitions": clients} for n in range(clients)})

    def wait(_: float) -> None:
        at_s = grid.next_arrival_s()
        assert at_s is not None, "nobody will answer any more"
        grid.advance_to(max(at_s, grid.now()))

    fh.run(table, out=out, assemble=on_grid(grid, wait=wait))


def assert_same_runs(one: Path, other: Path) -> None:
    """Records, plans and weights of two runs are the same."""
    first, second = fh.load_run(one), fh.load_run(other)
    assert rounds_of(first) == rounds_of(second)  # cohorts, times, bytes, accuracy
    assert first.clients == second.clients  # plans, budgets, planned and measured peaks
    plans = [{p.name: p.read_bytes() for p in (folder / "plans").iterdir()} for folder in (one, other)]
    assert plans[0] == plans[1]
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6)
