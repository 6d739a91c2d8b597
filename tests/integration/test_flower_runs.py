"""The same recipe in process, on the in-memory grid and on Flower's simulation: the same run, to the byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tests.federation_parts import recipe
from tests.grid_parts import assert_same_runs, run_on_local_grid
from tests.run_parts import asynchronous, small

import fedhybrid as fh

pytest.importorskip("flwr")

ROOT = Path(__file__).parents[2]
SPLIT = recipe(
    model="tests.split_method:TwoLayers",
    model_options={},
    method="tests.split_method:SplitTraining",
    policy="uniform",
    fleet={"clients_per_round": 4, "tiers": [{"name": "all", "budget": "100%", "device": "raspberry-pi-4"}]},
    train={"batch_size": 8, "steps": 3, "lr": 0.1},
)
HEADED = recipe(
    method="tests.head_method:HeadFirst",
    model="cnn",
    model_options={"width": 0.25},
    policy="uniform",
    data={"clients": 8, "alpha": 5.0},
    fleet={
        "clients_per_round": 4,
        "tiers": [
            {"name": "weak", "budget": "60%", "device": "raspberry-pi-4"},
            {"name": "strong", "budget": "100%", "device": "laptop"},
        ],
    },
    planner={"actions": ["recompute", "split"]},
)
RECIPES: dict[str, dict[str, Any]] = {
    "fedavg": small(method="fedavg"),
    "fedhybrid": small(method="fedhybrid", policy="fedhybrid"),
    "asynchronous": asynchronous("fedbuff"),
    "split": SPLIT,
    "submodels": HEADED,
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_in_memory_grid_gives_the_run_of_this_process(name: str, tmp_path: Path) -> None:
    fh.run(RECIPES[name], out=tmp_path / "here")
    run_on_local_grid(RECIPES[name], tmp_path / "grid")
    assert_same_runs(tmp_path / "here", tmp_path / "grid")


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
    assert_same_runs(tmp_path / "here", tmp_path / "ray")
    assert (tmp_path / "ray/report.html").is_file()
