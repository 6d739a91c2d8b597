"""Recipes with another recipe below on the command line: printed whole, compared, refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tests.integration.cli_runner import assert_refused, fedhybrid
from tests.run_parts import small
from tests.unit.test_recipe_bases import above, below

from fedhybrid.experiment import config_toml, load_config
from fedhybrid.experiment.check import to_table
from fedhybrid.experiment.overrides import apply_overrides


def test_the_whole_is_printed(tmp_path: Path) -> None:
    below(tmp_path, seed=8)
    recipe = above(tmp_path, rounds=4)
    printed = fedhybrid("run", recipe, "--print-config", "train.lr=0.5")
    assert printed.code == 0
    table = tomllib.loads(printed.out)
    (tmp_path / "below.toml").unlink()
    assert "base" not in table
    assert (table["seed"], table["rounds"], table["train"]["lr"]) == (8, 4, 0.5)
    assert to_table(load_config(table)) == table
    assert printed.out.strip() == config_toml(apply_overrides(small(seed=8, rounds=4), {"train.lr": 0.5})).strip()


def test_comparing(tmp_path: Path) -> None:
    one = {"method": "fedavg", "rounds": 1, "train": {"batch_size": 8, "steps": 1}, "data": {"clients": 4}}
    below(tmp_path, **one, compare={"variants": {"prox": {"method": "fedprox"}}, "targets": [0.9]})
    out = tmp_path / "out"
    ran = fedhybrid("compare", above(tmp_path, seed=7), "--seeds", "1", "--out", out, env={"OMP_NUM_THREADS": "1"})
    assert ran.code == 0, ran
    assert [path.name for path in (out / "runs/above").iterdir()] == ["seed-7"]
    assert [path.parent.name for path in out.rglob("summary.json")] == ["prox"]


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_missing_base_is_an_error_and_leaves_nothing(tmp_path: Path, command: str) -> None:
    ran = fedhybrid(command, above(tmp_path, "none.toml"), "--out", tmp_path / "out")
    assert_refused(ran, "none.toml, the base of ")
    assert not (tmp_path / "out").exists()
