"""`fedhybrid run` and `fedhybrid report`: a small federation from the command line, and every way to be refused."""

from __future__ import annotations

import json
import tomllib
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


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    folder = tmp_path_factory.mktemp("cli-run")
    (folder / "recipe.toml").write_text(RECIPE + VARIANTS)
    return folder / "run", fedhybrid("run", folder / "recipe.toml", "seed=3", "--out", folder / "run")


class TestRun:
    def test_ends_well_and_says_where_the_report_lies(self, finished: tuple[Path, Ran]) -> None:
        out, ran = finished
        assert ran.code == 0, ran.err
        assert f"report: {out / 'report.html'}" in ran.out
        assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")

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
        ran = fedhybrid("run", out.parent / "recipe.toml", "seed=3", "--out", out, "--resume")
        assert ran.code == 0, ran.err
        assert (out / "plain/rounds.jsonl").read_bytes() == before

    def test_an_existing_run_is_not_overwritten(self, finished: tuple[Path, Ran]) -> None:
        out, _ = finished
        assert_refused(fedhybrid("run", out.parent / "recipe.toml", "seed=3", "--out", out), "--resume")

    def test_report_again(self, finished: tuple[Path, Ran]) -> None:
        out, _ = finished
        (out / "report.html").unlink()
        ran = fedhybrid("report", out)
        assert ran.code == 0, ran.err
        assert Path(ran.out.strip()) == out / "report.html"
        assert (out / "report.html").is_file()


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

    def test_report_of_no_run(self, tmp_path: Path) -> None:
        assert_refused(fedhybrid("report", tmp_path), str(tmp_path))
