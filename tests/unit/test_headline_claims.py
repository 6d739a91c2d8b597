"""The headline comparison's note: what was claimed before the runs, and what came out so far."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.comparison_parts import describe, place, write_curve

from fedhybrid.experiment import load_config
from fedhybrid.experiment.cells import cells_of
from fedhybrid.experiment.check import to_table, variants_of
from fedhybrid.experiment.fixing import described, store
from fedhybrid.report.comparison import write_comparison
from fedhybrid.report.comparison.figures import DRAWINGS

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "benchmarks/headline.py"
CELLS = ["uci-har, memory tied to speed", "uci-har, memory tied to data"]
# (virtual seconds, accuracy) of each test, in the cell in which memory is tied to speed and in the other one.
CURVES = {
    "oracle": ([(1.0, 0.6), (2.0, 0.905)], [(1.0, 0.6), (2.0, 0.885)]),
    "random-exclusion": ([(0.5, 0.6), (1.0, 0.8)], [(0.5, 0.2), (1.0, 0.3)]),
    "fedhybrid-paper": ([(2.0, 0.6), (3.0, 0.8)], [(2.0, 0.6), (3.0, 0.9)]),
    "fedhybrid-plus": ([(0.8, 0.6), (1.6, 0.9)], [(0.8, 0.6), (1.6, 0.88)]),
}
Benchmark = Callable[..., tuple[str, dict[str, Any]]]  # of a folder of runs, its note and the numbers behind


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = {name: DRAWINGS[name] for name in ("accuracy",)}
    monkeypatch.setattr("fedhybrid.report.comparison.page.DRAWINGS", drawings)


def compared(
    folder: Path,
    *,
    without: Sequence[tuple[str, int, str]] = (),
    curves: Mapping[str, Any] = CURVES,
    cells: Sequence[str] = CELLS,
) -> dict[str, Any]:
    """table.json of cells with three seeds; `without` are runs that are not finished."""
    describe(
        folder,
        {cell: [*curves] for cell in cells},
        seeds=[1, 2, 3],
        targets=[0.5],
        reference="random-exclusion",
        oracle="oracle",
    )
    for i, cell in enumerate(cells):
        for variant, each in curves.items():
            for seed in (1, 2, 3):
                if (cell, seed, variant) not in without:
                    write_curve(place(folder, cell, seed, variant), each[i], seed=seed, failing=0.0)
    write_comparison(folder)
    found: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return found


def rows_of(numbers: Mapping[str, Any], absent: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What was found, by the first words of what was claimed."""
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from showing import claims_table  # noqa: PLC0415 - the folder is on the path only here

    rows = [line.strip("| ").split(" | ") for line in claims_table(numbers, absent=absent).splitlines() if "|" in line]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] != "---"}


def found_of(rows: Mapping[str, str], words: str) -> str:
    (found,) = [found for claim, found in rows.items() if words in claim]
    return found


def test_what_is_finished_is_answered_with_both_fleets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(compared(tmp_path), (), monkeypatch)
    declared = found_of(rows, "39.2 points above")
    assert declared == (
        "yes: +58.0 ± 0.0 points (3 seeds); with memory tied to speed: +10.0 ± 0.0 points (3 seeds); of the other "
        "contenders fedhybrid-paper ends highest, +60.0 points"
    )
    assert found_of(rows, "run is over") == (
        "yes: +5.0 points; above in 1 of 2 cells, most in uci-har, memory tied to data (+30.0); without that cell -20.0"
    )
    assert found_of(rows, "all cells together").startswith("yes: fedhybrid-plus 1.50, random-exclusion 2.00, ")
    assert found_of(rows, "rank with memory tied to speed") == "no: random-exclusion 1.00, fedhybrid-plus 2.00, " + (
        "fedhybrid-paper 3.00"
    )
    assert found_of(rows, "rank with memory tied to data").startswith("yes: fedhybrid-plus 1.00, fedhybrid-paper 2.00")
    assert found_of(rows, "rank in cells after which") == found_of(rows, "rank on CIFAR-10") == "not run"
    assert found_of(rows, "above what guessing").startswith("yes: fedhybrid-plus 1.50, ")
    assert found_of(rows, "nowhere worse") == (
        "no: lower in 1 of 2 cells, by more than the interval in 1 of 2, higher by more in 1; +4.0 points on average "
        "(by the mean of the last five tests +2.0), least -2.0 ± 0.0 points (3 seeds) (uci-har, memory tied to data)"
    )
    assert found_of(rows, "times sooner").startswith(
        "no: 0.62 to 1.25 times in 2 cells (mean 0.88; sooner in 1), most in uci-"
    )
    assert found_of(rows, "our plans") == "not run"
    assert found_of(rows, "budget").startswith("yes: 0 of ")
    assert found_of(rows, "no limit at all").startswith(
        "yes: -0.5 points (cells: -0.5 to -0.5; by the mean of the last five tests -0.3), 0.80 times its time"
    )


def test_nobody_is_first_who_shares_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {**CURVES, "fedhybrid-paper": CURVES["fedhybrid-plus"]}
    assert found_of(rows_of(compared(tmp_path, curves=curves), (), monkeypatch), "all cells together").startswith(
        "no: "
    )


@pytest.mark.parametrize(
    ("without", "absent", "answer"),
    [
        ([(CELLS[1], 3, "fedhybrid-plus")], (), ("39.2 points above", "so far yes: +58.0 ± 0.0 points (2 seeds)")),
        ([(CELLS[1], 3, "random-exclusion")], (), ("39.2 points above", "so far yes: +58.0 ± 0.0 points (2 seeds)")),
        ([(CELLS[0], 3, "fedhybrid-plus")], (), ("39.2 points above", "so far yes: +58.0 ± 0.0 points (3 seeds)")),
        ([(CELLS[0], 3, "oracle")], (), ("39.2 points above", "yes: ")),
        ([(CELLS[1], s, "random-exclusion") for s in (1, 2, 3)], (), ("39.2 points above", "not run")),
        ([(CELLS[1], s, "fedhybrid-plus") for s in (1, 2, 3)], (), ("39.2 points above", "not run")),
        ([(CELLS[0], 3, "oracle")], (), ("all cells together", "so far yes: ")),
        ([], ["cifar10"], ("all cells together", "so far yes: ")),
        ([], ["cifar10"], ("39.2 points above", "yes: ")),
        ([], ["cifar10"], ("nowhere worse", "so far no: ")),
        ([(c, s, v) for c in CELLS for s in (1, 2, 3) for v in CURVES], (), ("budget", "not run")),
    ],
)
def test_nothing_counts_for_more_than_is_there(
    without: Sequence[tuple[str, int, str]],
    absent: Sequence[str],
    answer: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = rows_of(compared(tmp_path, without=without), absent, monkeypatch)
    words, found = answer
    assert found_of(rows, words).startswith(found)
    assert len(rows) == 2 + 3 + 10, "two heads, three claims, ten questions, whatever is missing"


def test_claims_are_those_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs/headline.md").read_text(encoding="utf-8")
    claims = guide.partition("What is claimed:")[2].partition("\n\nThe note")[0]
    assert claims.count("\n- ") == 3
    assert "`fedhybrid-plus` ends at least 39.2 points above `random-exclusion`" in " ".join(claims.split())
    for words in ("39.2 points above", "first in mean rank of time to the targets", "nowhere worse than"):
        assert words in claims
        assert found_of(rows_of(compared(tmp_path / words[:4]), (), monkeypatch), words)


def test_pairs_of_the_recipe_differ_in_what_they_are_named_for() -> None:
    config = load_config(ROOT / "recipes/headline/uci-har.toml")
    tables = {label: to_table(each) for label, each in variants_of(config).items()}
    effects = config.compare.effects or {}
    assert len({tuple(pair) for pair in effects.values()}) == len(effects)
    for label, (own, other) in effects.items():
        differing = {name for name in tables[own] if tables[own][name] != tables[other].get(name)}
        if "selection" in label:
            assert "policy" in differing
            assert differing <= {"policy", "policy_options"}, label
        if label == "our plans instead of the paper's":
            assert differing == {"planner"}
        if label.endswith("plans alone") or label.endswith("instead of no limits"):
            assert other in (config.compare.reference, config.compare.oracle)
            assert "policy" not in differing, label


def headline(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )


def test_wrong_words_and_empty_folders_are_named(tmp_path: Path) -> None:
    strange = headline("--out", str(tmp_path), "--only-note", "--settings", "uci-har,mnist")
    assert strange.returncode == 2
    assert "--settings: mnist is none of uci-har, fashion-mnist" in strange.stderr
    (tmp_path / "cifar10").mkdir()
    whole = headline("--out", str(tmp_path), "--only-note", "--settings", "cifar10")
    assert whole.returncode == 2
    assert whole.stderr.startswith(
        f"error: {tmp_path / 'cifar10'} holds all mixtures of its data; here each has a folder"
    )
    assert "such as cifar10-alpha-0.1: give another --out" in whole.stderr


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """Writes the note of a folder of runs, and gives its text and the numbers behind; results are those of the test."""
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    import headline  # noqa: PLC0415 - the folder is on the path only here
    from showing import note  # noqa: PLC0415

    for module in (headline, note):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")

    def written(out: Path, code: int = 0) -> tuple[str, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["headline.py", "--out", str(out), "--only-note"])
        assert headline.main() == code
        if code:
            return "", {}
        (path,) = (tmp_path / "results").glob("headline_epyc-2core_*.md")
        numbers: dict[str, Any] = json.loads((out / "all/table.json").read_text(encoding="utf-8"))
        return path.read_text(encoding="utf-8"), numbers

    return written


def test_the_note_has_the_command_that_makes_it(tmp_path: Path, benchmark: Benchmark) -> None:
    compared(tmp_path / "runs/uci-har")
    text, _ = benchmark(tmp_path / "runs")
    for part in (
        "benchmarks/headline.py --root DATA --out DIR --settings uci-har --seeds 3 --note\n",
        "- seeds: 1, 2, 3\n",
        "- begun with: fedhybrid 0.1.0, torch 2.13.0, python 3.11.7\n",
        "2 cells; not begun: fashion-mnist-alpha-0.1, fashion-mnist-alpha-0.5, shakespeare-plays-alpha-0.1, ",
        "## All cells together",
        "<summary>uci-har.toml, complete</summary>",
        "_accuracy.png)",
    ):
        assert part in text
    assert str(tmp_path) not in text


def test_the_page_is_made_again_from_records_alone(tmp_path: Path, benchmark: Benchmark) -> None:
    compared(tmp_path / "runs/uci-har")
    for config in (tmp_path / "runs").glob("uci-har/runs/*/*/*/config.toml"):
        config.write_text(config.read_text().replace("[data]\n", f'[data]\nroot = "{tmp_path}"\n'))
    first = benchmark(tmp_path / "runs")
    (records,) = (tmp_path / "results").rglob("*.tar.xz")
    kept = records.read_bytes()
    assert benchmark(tmp_path / "elsewhere") == first
    records.unlink()
    assert benchmark(tmp_path / "runs") == first
    assert records.read_bytes() == kept, "equal records make equal bytes"
    with tarfile.open(records) as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            assert content is not None
            assert str(tmp_path) not in content.read().decode()
            assert Path(entry.name).suffix in {".json", ".jsonl", ".toml"}


def test_nothing_there_is_one_line(tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark(tmp_path / "none", 1)
    assert f"there are neither runs in {tmp_path / 'none'} nor records of uci-har, fashion" in capsys.readouterr().err


def test_records_are_replaced_by_no_worse_ones(
    tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import headline as module  # noqa: PLC0415 - the fixture has put its folder on the path

    changed: list[bool] = [False]
    monkeypatch.setattr(module, "differs_from_recipe", lambda part, folder: changed[0])
    compared(tmp_path / "runs/uci-har")
    benchmark(tmp_path / "runs")
    (records,) = (tmp_path / "results").rglob("*.tar.xz")
    kept = records.read_bytes()
    compared(tmp_path / "begun/uci-har", without=[(CELLS[0], 3, "oracle")])
    _, numbers = benchmark(tmp_path / "begun")
    assert numbers["missing_runs"] == 0, "a note is not replaced by one of fewer runs"
    told = capsys.readouterr().err
    assert f"uci-har: 24 runs from {records}, more than the 23 in {tmp_path / 'begun/uci-har'}\n" in told
    assert "uci-har: 23 runs, fewer than the 24 recorded; the records stay as they are" in told
    changed[0] = True
    compared(tmp_path / "other/uci-har", curves={**CURVES, "fedhybrid-plus": CURVES["oracle"]})
    benchmark(tmp_path / "other")
    assert "24 runs, of other settings than the recipe's; the records stay" in capsys.readouterr().err
    assert records.read_bytes() == kept
    benchmark(tmp_path / "none")
    assert f"uci-har: 24 runs from {records}\n" in capsys.readouterr().err
    records.write_bytes(kept[: len(kept) // 2])
    benchmark(tmp_path / "none", 2)
    assert f"error: {records} is damaged (" in capsys.readouterr().err


def test_parts_may_come_from_runs_and_from_records(tmp_path: Path, benchmark: Benchmark) -> None:
    compared(tmp_path / "one/uci-har")
    benchmark(tmp_path / "one")
    other = compared(tmp_path / "two/shakespeare-characters", cells=["shakespeare-characters"])
    text, numbers = benchmark(tmp_path / "two")
    assert [cell["label"] for cell in numbers["cells"]] == [*CELLS, "shakespeare-characters"]
    assert numbers["cells"][2] == other["cells"][0]
    assert "- parts: uci-har, shakespeare-characters\n" in text
    assert "**Run with other settings than the recipe below has now: uci-har, shakespeare-characters.**" in text
    assert len(list((tmp_path / "results").rglob("*.tar.xz"))) == 2


def test_parts_are_those_of_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from comparing import RECIPES, SETTINGS, differs_from_recipe, parts_of  # noqa: PLC0415

    names = [part.name for setting in SETTINGS for part in parts_of(setting)]
    assert names == [part.name for setting in SETTINGS for part in parts_of(setting, RECIPES / "full")]
    assert names.count("uci-har") == names.count("cifar10-alpha-0.1") == names.count("cifar10-alpha-0.5") == 1
    (har,) = parts_of("uci-har")
    sparse, dense = parts_of("fashion-mnist")
    assert (sparse.words, dense.words) == (["compare.grid.data.alpha=[0.1]"], ["compare.grid.data.alpha=[0.5]"])
    moved = {"data.root": "elsewhere", "workers": 2}
    for part, changes in ((har, {}), (sparse, moved), (sparse, {"train.lr": 0.05})):
        folder = tmp_path / f"{part.name}-{len(changes)}-{'train.lr' in changes}"
        folder.mkdir()
        store(folder, described(cells_of({part.setting: part.recipe}, {**part.overrides, **changes}), 3), running=True)
        assert differs_from_recipe(part, folder) is ("train.lr" in changes)
    assert differs_from_recipe(dense, folder)


def test_fleets_stand_apart_and_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from showing import fleets_table  # noqa: PLC0415 - the folder is on the path only here

    lines = fleets_table(compared(tmp_path)).splitlines()
    heads = lines[0].strip("| ").split(" | ")
    assert heads[1::2] == ["memory tied to speed, 1 cells", "memory tied to data, 1 cells", "all 2 cells", *heads[7::2]]
    assert heads[2:7:2] == ["when exclusion ends"] * 3
    rows = {cells[0]: cells[1:] for line in lines[2:] if (cells := line.strip("| ").split(" | "))}
    assert "oracle" not in rows, "it has no place"
    # Against exclusion +10 and +58 points; from the oracle -0.5 points in both; the targets are reached at 0.8 s, the
    # oracle's at 1 s.
    # Exclusion ends after 1 s, with 0.8 and 0.3; ours has 0.6 then.
    assert rows["fedhybrid-plus"][:6] == ["+10.0", "-20.0", "+58.0", "+30.0", "+34.0 (+10.0 to +58.0)", "+5.0"]
    assert rows["fedhybrid-plus"][6:8] == ["-0.5 (-0.5 to -0.5)", "0.80\u00d7 (0.80\u00d7 to 0.80\u00d7)"]
    assert rows["fedhybrid-plus"][8] == "2.00, 1.00, 1.50"
    assert rows["random-exclusion"][:6] == ["\u2013"] * 6
    assert rows["random-exclusion"][7] == "0.50\u00d7; 3 of 6 missed"
