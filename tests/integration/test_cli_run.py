"""`fedhybrid run` and `fedhybrid report`: a small federation from the command line, and every way to be refused."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.cli_runner import Ran, assert_refused, fedhybrid

RECIPE = """
method = "fedavg"
policy = "uniform"
model = "cnn"
dataset = "digits"
rounds = 2

[model_options]
width = 0.25

[data]
clients = 4

[fleet]
clients_per_round = 2

[train]
batch_size = 16
"""
VARIANTS = '\n[compare.variants]\nplain = {}\nprox = { method = "fedprox" }\n'

OWN_MODEL = """
from torch import nn

def make(input_shape, classes, width=1.0):
    hidden = int(64 * width)
    pixels = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, classes))
"""
FINISHED = ("recipe.toml", "seed=3", "model=nets_beside_the_recipe:make")


@contextmanager
def current_folder(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", sys.path.copy())
        yield


@contextmanager
def one_processor() -> Iterator[None]:
    """With one, variants run one after the other in this process: quicker than to start others."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    folder = tmp_path_factory.mktemp("cli-run")
    (folder / "recipe.toml").write_text(RECIPE + VARIANTS)
    (folder / "nets_beside_the_recipe.py").write_text(OWN_MODEL)
    with current_folder(folder), one_processor():
        return folder / "run", fedhybrid("run", *FINISHED, "--out", folder / "run")


class TestRun:
    def test_ends_well_and_says_where_the_report_lies(self, finished: tuple[Path, Ran]) -> None:
        out, ran = finished
        assert ran.code == 0, ran.err
        assert f"report: {out / 'report.html'}" in ran.out
        assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")

    def test_variants_find_a_model_in_the_current_folder(self, finished: tuple[Path, Ran]) -> None:
        out, ran = finished
        assert ran.code == 0, ran.err
        for label in ("plain", "prox"):
            assert json.loads((out / label / "summary.json").read_text())["model"] == "nets_beside_the_recipe:make"

    def test_each_variant_has_a_report(self, finished: tuple[Path, Ran]) -> None:
        out, _ = finished
        assert all((out / label / "report.html").is_file() for label in ("plain", "prox"))
        assert all((out / label / "figures" / "accuracy.png").is_file() for label in ("plain", "prox"))

    def test_has_a_line_for_each_variant(self, finished: tuple[Path, Ran]) -> None:
        out, ran = finished
        for label in ("plain", "prox"):
            accuracy = json.loads((out / label / "summary.json").read_text())["final_accuracy"]
            assert any(line.startswith(label) and f"{accuracy:.3f}" in line for line in ran.out.splitlines())

    def test_log_tells_how_far_it_is(self, finished: tuple[Path, Ran]) -> None:
        _, ran = finished
        assert "plain: round 2/2, accuracy" in ran.err
        assert "prox: round 1/2, accuracy" in ran.err

    def test_override_is_in_the_configuration(self, finished: tuple[Path, Ran]) -> None:
        out, _ = finished
        assert tomllib.loads((out / "config.toml").read_text())["seed"] == 3

    def test_resume_of_a_finished_run_changes_no_record(self, finished: tuple[Path, Ran]) -> None:
        out, _ = finished
        before = (out / "plain/rounds.jsonl").read_bytes()
        with current_folder(out.parent):
            ran = fedhybrid("run", *FINISHED, "--out", out, "--resume")
        assert ran.code == 0, ran.err
        assert (out / "plain/rounds.jsonl").read_bytes() == before

    def test_an_existing_run_is_not_overwritten(self, finished: tuple[Path, Ran]) -> None:
        out, _ = finished
        with current_folder(out.parent):
            assert_refused(fedhybrid("run", *FINISHED, "--out", out), "--resume")

    def test_report_again(self, finished: tuple[Path, Ran]) -> None:
        out, _ = finished
        (out / "report.html").unlink()
        ran = fedhybrid("report", out)
        assert ran.code == 0, ran.err
        assert Path(ran.out.strip()) == out / "report.html"
        assert (out / "report.html").is_file()


class TestNotes:
    def test_a_fleet_that_nobody_fits(self, recipe: Path, tmp_path: Path) -> None:
        tiers = 'fleet.tiers=[{name = "all", budget = "1%", device = "laptop"}]'
        ran = fedhybrid(
            "run", recipe, tiers, "method=fedhybrid", "policy=fedhybrid", "rounds=1", "--out", tmp_path / "run"
        )
        assert ran.code == 0, ran.err
        (note,) = (line for line in ran.err.splitlines() if line.startswith("note: "))
        assert note.startswith("note: run: no device took part, as no budget holds a training step")

    def test_tasks_that_all_fail(self, recipe: Path, tmp_path: Path) -> None:
        ran = fedhybrid("run", recipe, "train.lr=1e30", "rounds=1", "--out", tmp_path / "run")
        assert ran.code == 0, ran.err
        (note,) = (line for line in ran.err.splitlines() if line.startswith("note: "))
        assert note.startswith("note: run: all 2 tasks failed (2 non finite")

    def test_none_where_all_is_well(self, finished: tuple[Path, Ran]) -> None:
        assert "note: " not in finished[1].err


@pytest.mark.slow
def test_processes_of_variants_find_a_model_in_the_current_folder(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE + VARIANTS)
    (tmp_path / "nets_beside_the_recipe.py").write_text(OWN_MODEL)
    with current_folder(tmp_path):
        ran = fedhybrid("run", *FINISHED, "rounds=1", "--out", "run", env={"OMP_NUM_THREADS": "1"})
    assert ran.code == 0, ran.err
    assert (tmp_path / "run" / "prox" / "summary.json").is_file()


class TestPrintConfig:
    def test_is_a_complete_recipe(self, recipe: Path) -> None:
        ran = fedhybrid("run", recipe, "rounds=7", "--print-config")
        config = tomllib.loads(ran.out)
        assert ran.code == 0
        assert config["rounds"] == 7
        assert config["train"]["epochs"] == 1  # not in the recipe: a default
        recipe.write_text(ran.out)
        assert tomllib.loads(fedhybrid("run", recipe, "--print-config").out) == config

    def test_makes_no_folder(self, recipe: Path, tmp_path: Path) -> None:
        assert fedhybrid("run", recipe, "--print-config", "--out", tmp_path / "out").code == 0
        assert not (tmp_path / "out").exists()


class TestRefusal:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("sede=3", "Did you mean 'seed'?"),
            ("train.lrr=0.1", "Did you mean 'lr'?"),
            ("rounds=many", "rounds"),
            ("rounds=0", "rounds"),
            ("method=fedhibrid", "Did you mean 'fedhybrid'?"),
            ("policy=exclusoin", "Did you mean 'exclusion'?"),
            ("model=resnet81", "Did you mean 'resnet18'?"),
            ("dataset=digit", "Did you mean 'digits'?"),
            ("data.partition=shard", "Did you mean 'shards'?"),
            ("model_options.widht=2.0", "Did you mean 'width'?"),
            ("rounds", "'rounds' is no key=value"),
        ],
    )
    def test_bad_override(self, recipe: Path, tmp_path: Path, override: str, expected: str) -> None:
        ran = fedhybrid("run", recipe, override, "--out", tmp_path / "out")
        assert_refused(ran, expected)
        assert len(ran.errors) == 1
        assert not (tmp_path / "out").exists()

    def test_missing_data_folder(self, recipe: Path, tmp_path: Path) -> None:
        missing = tmp_path / "no" / "data"
        ran = fedhybrid("run", recipe, "dataset=cifar10", f"data.root={missing}", "--out", tmp_path / "out")
        assert_refused(ran, str(missing))

    def test_negative_budget(self, recipe: Path, tmp_path: Path) -> None:
        recipe.write_text(RECIPE + '\n[[fleet.tiers]]\nname = "low"\nbudget = "-5 MiB"\ndevice = "laptop"\n')
        assert_refused(fedhybrid("run", recipe, "--out", tmp_path / "out"), "-5 MiB")

    def test_all_problems_at_once(self, recipe: Path, tmp_path: Path) -> None:
        overrides = ("sede=3", "rounds=many", "method=fedhibrid", "dataset=cifar10", f"data.root={tmp_path / 'none'}")
        ran = fedhybrid("run", recipe, *overrides, "--out", tmp_path / "out")
        assert_refused(ran, "'seed'", "rounds", "'fedhybrid'", str(tmp_path / "none"))
        assert len(ran.errors) == 4

    def test_recipe_that_is_not_there(self, tmp_path: Path) -> None:
        assert_refused(fedhybrid("run", tmp_path / "none.toml", "--out", tmp_path / "out"), "none.toml")

    def test_recipe_that_is_no_toml(self, recipe: Path, tmp_path: Path) -> None:
        recipe.write_text("rounds = = 3")
        assert_refused(fedhybrid("run", recipe, "--out", tmp_path / "out"), "not TOML")

    def test_no_folder_given(self, recipe: Path) -> None:
        assert_refused(fedhybrid("run", recipe), "--out DIR is missing")

    @pytest.mark.parametrize("parts", [("file", "run"), ("file",)])
    def test_a_folder_that_cannot_be_made(self, recipe: Path, tmp_path: Path, parts: tuple[str, ...]) -> None:
        (tmp_path / "file").write_text("")
        ran = fedhybrid("run", recipe, "sede=3", "--out", tmp_path.joinpath(*parts))
        assert_refused(ran, "no run can be written there", "Did you mean 'seed'?")
        assert len(ran.errors) == 2

    def test_refused_recipes_leave_no_folders(self, recipe: Path, tmp_path: Path) -> None:
        assert_refused(fedhybrid("run", recipe, "sede=3", "--out", tmp_path / "a" / "b"), "'seed'")
        assert not (tmp_path / "a").exists()

    def test_report_of_no_run(self, tmp_path: Path) -> None:
        assert_refused(fedhybrid("report", tmp_path), str(tmp_path))
