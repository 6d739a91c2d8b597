"""`fedhybrid compare`: a small comparison from the command line, gone on with, refused, and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w
from tests.command_lines import command_lines, parse
from tests.integration.cli_runner import Ran, assert_refused, fedhybrid
from tests.integration.test_cli_run import current_folder
from tests.run_parts import assert_same_run, child_processes, small

import fedhybrid as fh
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import compare
from fedhybrid.experiment.cells import cells_of
from fedhybrid.experiment.check import load_config

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/comparisons.md").read_text(encoding="utf-8")
LABELS = ("plain", "prox")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def recipe(folder: Path, **changes: object) -> Path:
    """One round of one step: what is compared hardly matters here."""
    raw = small(
        method="fedavg",
        rounds=1,
        train={"batch_size": 8, "steps": 1},
        data={"clients": 4},
        compare={
            "targets": [0.05, 0.9],
            "reference": "plain",
            "variants": {"plain": {}, "prox": {"method": "fedprox"}},
        },
        **changes,
    )
    path = folder / "small.toml"
    path.write_text(tomli_w.dumps(raw))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    folder = tmp_path_factory.mktemp("compare")
    out = folder / "out"
    return out, fedhybrid("compare", recipe(folder), "--seeds", "1", "--out", out, env=ONE_THREAD)


def run_of(out: Path, label: str, seed: int = 5) -> Path:
    return out / "runs" / "small" / f"seed-{seed}" / label


class TestCompare:
    def test_ends_well_and_says_where_everything_lies(self, done: tuple[Path, Ran]) -> None:
        out, ran = done
        assert ran.code == 0, ran.err
        assert f"page: {out / 'comparison.html'}" in ran.out
        assert f"tables: {out / 'table.md'}" in ran.out
        assert any(line.startswith("prox ") for line in ran.out.splitlines())
        assert "\u2026" not in ran.out  # nothing is cut off where the terminal is narrow
        assert "note: One seed only" in ran.err
        assert {path.name for path in out.iterdir()} == {
            ".lock", "comparison.html", "comparison.json", "figures", "runs", "table.json", "table.md",
        }  # fmt: skip

    def test_tells_which_runs_are_done(self, done: tuple[Path, Ran]) -> None:
        lines = [line for line in done[1].err.splitlines() if line.startswith(("1/2 ", "2/2 "))]
        assert len(lines) == 2
        assert {line.split(": ")[1] for line in lines} == set(LABELS)

    def test_each_run_is_what_the_recipe_alone_gives(self, done: tuple[Path, Ran], tmp_path: Path) -> None:
        out, _ = done
        config = load_config(recipe(tmp_path), {"method": "fedprox"}).model_dump(exclude_none=True)
        config.pop("compare")
        fh.run(config, out=tmp_path / "alone")
        assert_same_run(tmp_path / "alone", run_of(out, "prox"))

    def test_what_is_fixed_is_written_down(self, done: tuple[Path, Ran]) -> None:
        fixed = json.loads((done[0] / "comparison.json").read_text())
        assert fixed["versions"].keys() == {"fedhybrid", "torch", "python", "code"}
        assert fixed["codes"] == [fixed["versions"]["code"]]
        (cell,) = fixed["cells"]
        assert (cell["targets"], cell["reference"], cell["seeds"]) == ([0.05, 0.9], "plain", [5])
        assert cell["variants"]["prox"]["train"]["lr"] == 0.05  # complete: not in the recipe

    def test_a_finished_one_is_only_read(self, done: tuple[Path, Ran], tmp_path: Path) -> None:
        out, _ = done
        before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
        (out / "comparison.html").unlink()
        start_s = time.monotonic()
        ran = fedhybrid("compare", recipe(tmp_path), "--seeds", "1", "--out", out)
        assert ran.code == 0, ran.err
        assert time.monotonic() - start_s < 30
        assert (out / "comparison.html").is_file()
        assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()} == before

    def test_report_writes_the_page_again(self, done: tuple[Path, Ran]) -> None:
        out, _ = done
        (out / "comparison.html").unlink(missing_ok=True)
        ran = fedhybrid("report", out)
        assert ran.code == 0, ran.err
        assert Path(ran.out.strip()) == out / "comparison.html"
        assert (out / "comparison.html").is_file()
        ran = fedhybrid("report", run_of(out, "prox"))
        assert ran.code == 0, ran.err
        assert (run_of(out, "prox") / "report.html").is_file()


class TestRefusal:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["compare.targets=[0.5]"], "targets was [0.05, 0.9], now it is [0.5] (small)"),
            (["compare.reference=prox"], 'reference was "plain", now it is "prox" (small)'),
            (["train.lr=0.1"], "train.lr was 0.05, now it is 0.1 (small)"),
            (["rounds=2"], "rounds was 1, now it is 2 (small)"),
            (["seed=6"], "seed was 5, now it is 6 (small)"),
            (["compare.variants.prox.train.lr=0.2"], "prox: train.lr was not set, now it is 0.2 (small)"),
            (["compare.grid.data.alpha=[0.1]"], "its cells are small; now they are small, alpha 0.1"),
        ],
    )
    def test_of_another_comparison(
        self, words: list[str], expected: str, done: tuple[Path, Ran], tmp_path: Path
    ) -> None:
        before = (done[0] / "comparison.json").read_bytes()
        ran = fedhybrid("compare", recipe(tmp_path), *words, "--seeds", "1", "--out", done[0])
        assert_refused(ran, expected)
        assert len(ran.errors) == 1
        assert "What is compared is fixed before the runs" in ran.err
        assert (done[0] / "comparison.json").read_bytes() == before

    def test_of_all_that_is_wrong_with_the_command_line(self, tmp_path: Path) -> None:
        ran = fedhybrid("compare", "rounds=1", "rounds=2", "--seeds", "0")
        assert_refused(ran, "no recipe is given", "'rounds' is given twice", "--seeds must be", "--out DIR is missing")
        assert len(ran.errors) == 4

    def test_of_recipes(self, tmp_path: Path) -> None:
        path, out = recipe(tmp_path), tmp_path / "out"
        assert_refused(fedhybrid("compare", tmp_path / "none.toml", "--out", out), "none.toml cannot be read")
        assert_refused(fedhybrid("compare", path, "train.lrr=1", "--out", out), "Did you mean 'lr'?")
        (tmp_path / "b").mkdir()
        twin = recipe(tmp_path / "b")
        assert_refused(fedhybrid("compare", path, twin, "--out", out), "have the same name")
        assert not out.exists()

    def test_of_data_that_are_not_there(self, tmp_path: Path) -> None:
        ran = fedhybrid("compare", recipe(tmp_path), "data.clients=100000", "fleet.clients_per_round=2", "--out",
                        tmp_path / "out")  # fmt: skip
        assert_refused(ran, "small: plain: data.")
        assert len(ran.errors) == 1
        assert not (tmp_path / "out").exists()

    def test_of_folders_of_something_else(self, done: tuple[Path, Ran], tmp_path: Path) -> None:
        path, other = recipe(tmp_path), tmp_path / "other"
        other.mkdir()
        (other / "mine.txt").write_text("")
        assert_refused(fedhybrid("compare", path, "--out", other), "is not empty and holds no comparison")
        a_run = run_of(done[0], "plain")
        assert_refused(fedhybrid("compare", path, "--out", a_run), "holds a run, not a comparison")
        assert_refused(fedhybrid("compare", path, "--out", path), "no run can be written there")

    def test_of_fewer_seeds_than_there_are(self, done: tuple[Path, Ran], tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        fixed = json.loads((done[0] / "comparison.json").read_text())
        (out / "comparison.json").write_text(json.dumps(fixed | {"seeds": 3}))
        assert_refused(fedhybrid("compare", recipe(tmp_path), "--seeds", "2", "--out", out), "give --seeds 3 or more")

    def test_of_other_versions_while_runs_are_missing(self, done: tuple[Path, Ran], tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        fixed = json.loads((done[0] / "comparison.json").read_text())
        fixed["versions"]["torch"] = "1.0"
        (out / "comparison.json").write_text(json.dumps(fixed))
        ran = fedhybrid("compare", recipe(tmp_path), "--seeds", "1", "--out", out)
        assert_refused(ran, "begun with other versions: torch was 1.0, now it is")

    def test_other_code_is_told_while_runs_are_missing(self, done: tuple[Path, Ran], tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        fixed = json.loads((done[0] / "comparison.json").read_text())
        now = fixed["versions"]["code"]
        fixed["versions"]["code"], fixed["codes"] = "0123456789ab", ["0123456789ab"]
        (out / "comparison.json").write_text(json.dumps(fixed))
        ran = fedhybrid("compare", recipe(tmp_path), "--seeds", "1", "--out", out, env=ONE_THREAD)
        assert ran.code == 0, ran.err
        assert f"begun with other code of fedhybrid (hash 0123456789ab, now {now})" in ran.err
        assert "note: Runs were made by 2 states of the package" in ran.err

    def test_of_a_damaged_comparison(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "comparison.json").write_text("{")
        assert_refused(fedhybrid("compare", recipe(tmp_path), "--out", out), "comparison.json cannot be read")

    def test_in_python(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--seeds must be at least 1, got 0"):
            compare({"small": recipe(tmp_path)}, out=tmp_path / "out", seeds=0)


@pytest.mark.slow
def test_more_seeds_come_to_those_that_are_there(done: tuple[Path, Ran], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for seeds in ("1", "2"):
        ran = fedhybrid("compare", recipe(tmp_path), "--seeds", seeds, "--out", out, env=ONE_THREAD)
        assert ran.code == 0, ran.err
    assert "2/4 runs were complete already" in ran.err
    for label in LABELS:
        assert_same_run(run_of(out, label), run_of(done[0], label))
        assert json.loads((run_of(out, label, 6) / "summary.json").read_text())["seed"] == 6
    assert json.loads((out / "table.json").read_text())["cells"][0]["variants"]["prox"]["seeds"] == [5, 6]
    assert "Seed 6 was added later." in (out / "table.md").read_text()


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "nets_that_branch.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, input_shape, classes):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(input_shape[1] * input_shape[2], classes)\n"
        "    def forward(self, x):\n"
        "        y = self.layer(x.flatten(1))\n"
        "        return y if float(y.sum()) > 0 else -y\n"
        "def make(input_shape, classes):\n"
        "    return Net(input_shape, classes)\n"
    )
    path = recipe(tmp_path)
    path.write_text(path.read_text() + '\n[compare.variants.branches]\nmodel = "nets_that_branch:make"\n')
    with current_folder(tmp_path):
        ran = fedhybrid("compare", path, "--seeds", "1", "--out", "out", env=ONE_THREAD)
    assert ran.code == 2, ran.err
    (line,) = ran.errors
    assert line.startswith("error: small, seed 5: branches: Could not capture the training step")
    assert all((run_of(tmp_path / "out", label) / "summary.json").is_file() for label in LABELS)
    assert "FAILED small, seed 5: branches: Could not capture the training step" in ran.err
    assert "1 of 3 runs are not finished" in (tmp_path / "out/comparison.html").read_text()


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    longer = ["rounds=60", "checkpoint_every=1", "compare.grid.data.alpha=[0.5, 5.0]"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    ran = fedhybrid("compare", path, *longer, "--seeds", "1", "--out", whole, env=ONE_THREAD)
    assert ran.code == 0, ran.err
    before = child_processes()
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhybrid", "compare", str(path), *longer, "--seeds", "1", "--out", str(out)],
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        given_up_s = time.monotonic() + 200
        while not _under_way(out):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < given_up_s
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not list(out.rglob("comparison.html"))
    ran = fedhybrid("compare", path, *longer, "--seeds", "1", "--out", out, env=ONE_THREAD)
    assert ran.code == 0, ran.err
    assert re.search(r"goes on after round \d+/60", ran.err)
    for run in sorted((whole / "runs").glob("*/*/*")):
        assert_same_run(run, out / run.relative_to(whole))
    one, two = (json.loads((folder / "table.json").read_text()) for folder in (whole, out))
    assert (one["cells"], one["overall"]) == (two["cells"], two["overall"])
    assert child_processes() == before


def _under_way(out: Path) -> bool:
    """Whether a run has stored some rounds of its sixty."""
    return any(path.read_bytes().count(b"\n") in range(3, 50) for path in out.rglob("rounds.jsonl"))


class TestDocs:
    def test_commands_parse(self) -> None:
        lines = command_lines(DOCS)
        assert lines
        for words in lines:
            parse(words)

    def test_toml_is_a_comparison(self) -> None:
        ((path, text),) = re.findall(
            r"^```toml\n# in the place of \[compare\] in (\S+)\n(.*?)^```$", DOCS, flags=re.MULTILINE | re.DOTALL
        )
        raw = tomllib.loads((ROOT / path).read_text(encoding="utf-8"))
        raw["compare"] = tomllib.loads(text)["compare"]
        found = cells_of({"tiny": raw})
        assert len(found) == 8
        for cell in found:  # only budgets tell the oracle from the others
            devices = {tuple(tier.device for tier in config.fleet.tiers) for config in cell.variants.values()}
            assert len(devices) == 1
            assert [tier.budget for tier in cell.variants["no-limit"].fleet.tiers] == ["100%"]

    def test_links_lead_somewhere(self) -> None:
        targets = [target for target in re.findall(r"\]\(([^)]+)\)", DOCS) if "://" not in target]
        assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
