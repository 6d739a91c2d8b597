"""The same recipe in process, on the in-memory grid and on Flower's simulation: the same run, to the byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from tests.federation_parts import recipe
from tests.run_parts import asynchronous, rounds_of, small

import fedhybrid as fh

pytest.importorskip("flwr")

from fedhybrid.integrations.flower.simulated.app import client_app
from fedhybrid.integrations.flower.simulated.local_grid import LocalGrid
from fedhybrid.integrations.flower.simulated.simulation import on_grid

ROOT = Path(__file__).parents[2]
SPLIT = recipe(
    model="tests.split_method:TwoLayers",
    model_options={},
    method="tests.split_method:SplitTraining",
    policy="uniform",
    fleet={"clients_per_round": 4, "tiers": [{"name": "all", "budget": "100%", "device": "raspberry-pi-4"}]},
    train={"batch_size": 8, "steps": 3, "lr": 0.1},
)
RECIPES: dict[str, dict[str, Any]] = {
    "fedavg": small(method="fedavg"),
    "fedhybrid": small(method="fedhybrid", policy="fedhybrid"),
    "asynchronous": asynchronous("fedbuff"),
    "split": SPLIT,
}


def _on_local_grid(table: dict[str, Any], out: Path) -> None:
    clients = table["data"]["clients"]
    grid = LocalGrid(client_app, {100 + n: {"partition-id": n, "num-partitions": clients} for n in range(clients)})

    def wait(_: float) -> None:
        at_s = grid.next_arrival_s()
        assert at_s is not None, "nobody will answer any more"
        grid.advance_to(max(at_s, grid.now()))

    fh.run(table, out=out, assemble=on_grid(grid, wait=wait))


def _assert_same(one: Path, other: Path) -> None:
    first, second = fh.load_run(one), fh.load_run(other)
    assert rounds_of(first) == rounds_of(second)  # cohorts, times, bytes, accuracy
    assert first.clients == second.clients  # plans, budgets, planned and measured peaks
    plans = [{p.name: p.read_bytes() for p in (folder / "plans").iterdir()} for folder in (one, other)]
    assert plans[0] == plans[1]
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_the_in_memory_grid_gives_the_run_of_this_process(name: str, tmp_path: Path) -> None:
    fh.run(RECIPES[name], out=tmp_path / "here")
    _on_local_grid(RECIPES[name], tmp_path / "grid")
    _assert_same(tmp_path / "here", tmp_path / "grid")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_flowers_simulation_gives_the_run_of_this_process(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    fh.run(RECIPES[name], out=tmp_path / "here")
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(RECIPES[name]))
    # A process of its own: Ray leaves threads and warnings behind in this one.
    command = [sys.executable, "-m", "fedhybrid", "flower", "simulate", str(tmp_path / "recipe.toml")]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "ray")], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    _assert_same(tmp_path / "here", tmp_path / "ray")
    assert (tmp_path / "ray/report.html").is_file()
