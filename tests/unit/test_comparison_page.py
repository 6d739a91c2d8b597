"""The page of a comparison: one file with every figure and table, whatever is finished; the same numbers as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.comparison_parts import describe, place, write_curve
from tests.unit.report_runs import write_run
from tests.unit.test_report_page import PNG_SIGNATURE, Page

from fedhybrid.records import ClientRecord, Summary, as_json, read_jsonl, read_record
from fedhybrid.report.comparison import load_comparison, sentences, write_comparison
from fedhybrid.report.comparison.figures import DRAWINGS, Scene
from fedhybrid.report.comparison.figures.panels import looks, titles
from fedhybrid.report.comparison.load import Cell
from fedhybrid.report.comparison.measuring import measure_cell
from fedhybrid.report.comparison.overall import overall
from fedhybrid.report.comparison.sharing import differing, sharing_notices, sharing_words
from fedhybrid.report.comparison.table import cost_table, markdown, outcome_table, overall_table, reach_table
from fedhybrid.report.figures import LIGHT, themed
from fedhybrid.report.tables import Table

VARIANTS = ["no-limit", "exclusion", "fedhybrid"]


def filled(
    folder: Path,
    *,
    cells: int = 2,
    variants: list[str] | None = None,
    seeds: int = 2,
    reference: str | None = "exclusion",
) -> Path:
    variants = VARIANTS if variants is None else variants
    labels = {f"digits, alpha {i}": variants for i in range(cells)}
    describe(folder, labels, seeds=range(1, seeds + 1), targets=[0.3, 0.5, 0.9], reference=reference)
    for label in labels:
        for i, variant in enumerate(variants):
            for seed in range(1, seeds + 1):
                slow = 1.0 if variant == "exclusion" else 8.0
                curve = [(slow * (k + 1 + 0.1 * seed), 0.5 + 0.03 * i - 0.3 / (k + 1)) for k in range(6)]
                policy = "exclusion" if variant == "exclusion" else "fedhybrid"
                write_curve(place(folder, label, seed, variant), curve, policy=policy, seed=seed)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(write_comparison(folder).page.read_text())


def scenes_of(folder: Path) -> list[Scene]:
    return [Scene(cell=cell, result=measure_cell(cell)) for cell in load_comparison(folder).cells]


class TestPage:
    def test_needs_nothing_else(self, page: Page) -> None:
        assert page.open == []
        assert page.references
        assert all(each.startswith("data:image/png;base64,") for each in page.references)
        assert "script" not in page.tags

    def test_has_every_figure_in_light_and_dark(self, folder: Path, page: Page) -> None:
        names = sorted(path.name for path in (folder / "figures").iterdir())
        assert names == sorted(f"{name}.png" for name in DRAWINGS)
        assert all((folder / "figures" / name).read_bytes().startswith(PNG_SIGNATURE) for name in names)
        assert page.tags.count("source") == page.tags.count("img") == len(DRAWINGS)

    def test_says_who_is_how_far_from_the_reference(self, page: Page) -> None:
        headline = (
            "fedhybrid ends 3.0 points above exclusion in test accuracy, on average over 2 cells (cells: +3.0 to +3.0; "
            "beyond the 95 % interval in"
        )
        assert headline in page.text
        assert "comparison · 2 cells · 3 variants · 2 seeds" in page.text

    def test_has_the_tables_of_every_cell(self, folder: Path, page: Page) -> None:
        for scene in scenes_of(folder):
            for table in (outcome_table(scene.result), cost_table(scene.result), reach_table(scene.result)):
                for row in table.rows:
                    assert all(cell.replace("\u00a0", " ") in page.text for cell in row)

    def test_tables_as_text_and_json(self, folder: Path, page: Page) -> None:
        text = (folder / "table.md").read_text()
        assert "## All cells together" in text
        assert "\u00a0" not in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert all(line.endswith("|") for line in rows)
        numbers = json.loads((folder / "table.json").read_text())
        assert [cell["label"] for cell in numbers["cells"]] == ["digits, alpha 0", "digits, alpha 1"]
        quick = numbers["cells"][0]["variants"]["exclusion"]["targets"]
        assert quick[0]["mean_s"] == pytest.approx(2.15)  # the second test, after 2.1 s and 2.2 s, has 0.53 - 0.3 / 2
        assert quick[2]["mean_s"] is None

    def test_is_the_same_again(self, folder: Path, page: Page) -> None:
        before = (folder / "comparison.html").read_bytes()
        write_comparison(folder)
        assert (folder / "comparison.html").read_bytes() == before


def _unfinished(folder: Path) -> Path:
    filled(folder, cells=1)
    for label in ("exclusion", "fedhybrid"):
        (place(folder, "digits, alpha 0", 2, label) / "summary.json").unlink()
    return folder


def _nobody_fits(folder: Path) -> Path:
    describe(folder, {"r": ["a"]}, seeds=[1], targets=[])
    write_run(place(folder, "r", 1, "a"), policy="exclusion", tiers={"25%": 0.25}, rounds=2)
    return folder


ODD: dict[str, Callable[[Path], Path]] = {
    "nothing is finished": lambda folder: describe(folder, {"r, alpha 0.1": VARIANTS}, reference="exclusion"),
    "some runs are missing": _unfinished,
    "one seed": lambda folder: filled(folder, cells=1, seeds=1),
    "no reference": lambda folder: filled(folder, reference=None),
    "nobody fits, no targets": _nobody_fits,
    "many variants": lambda folder: filled(
        folder, cells=2, variants=[f"variant-number-{i}" for i in range(10)], seeds=1
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_every_odd_comparison_has_a_page(name: str, tmp_path: Path) -> None:
    written = write_comparison(ODD[name](tmp_path / "c"))
    page = Page(written.page.read_text())
    assert page.open == []
    expected = {
        "nothing is finished": "No run is finished yet.",
        "some runs are missing": "2 of 6 runs are not finished; numbers are of the others, and variants that miss runs "
        "are in no headline: digits, alpha 0: exclusion (1 of 2); digits, alpha 0: fedhybrid (1 of 2).",
        "one seed": "One seed only",
        "no reference": "fedhybrid has the highest final test accuracy in 2 of 2 cells.",
        "nobody fits, no targets": "a has the highest final test accuracy in 1 of 1 cell.",
        "many variants": "variant-number-9 has the highest",
    }
    assert expected[name] in page.text
    json.loads((tmp_path / "c" / "table.json").read_text())


class TestFigures:
    def test_each_variant_looks_the_same_everywhere_and_unlike_the_others(self, tmp_path: Path) -> None:
        folder = describe(tmp_path, {"r": [f"v{i}" for i in range(20)]})
        found = looks(scenes_of(folder), LIGHT)
        assert len(set(found.values())) == 20

    def test_lines_end_at_the_mean_of_the_last_tests(self, folder: Path) -> None:
        scenes = scenes_of(folder)
        with themed(LIGHT):
            figure = DRAWINGS["accuracy"].draw(scenes, LIGHT)
        assert figure is not None
        for axes, scene in zip(figure.axes, scenes, strict=True):
            ends = [
                (float(x[-1]), float(y[-1]))
                for line in axes.lines
                if len(x := np.asarray(line.get_xdata())) == 1 and len(y := np.asarray(line.get_ydata())) == 1
            ]
            expected = [(each.virtual_time_s, each.final.mean) for each in scene.result.variants.values()]
            assert ends == [pytest.approx(pair) for pair in expected]

    def test_a_mark_for_each_target_that_was_reached(self, folder: Path) -> None:
        scenes = scenes_of(folder)
        with themed(LIGHT):
            figure = DRAWINGS["time-to-target"].draw(scenes, LIGHT)
        assert figure is not None
        written = [text.get_text() for text in figure.axes[0].texts]
        assert written.count("30") == 3
        never = [text for text in written if text.startswith("never")]
        assert never == ["never 50\u00a0%", "never 50\u00a0%", "never 90\u00a0%"]

    def test_targets_that_were_missed_stand_outside_the_axes(self, folder: Path) -> None:
        with themed(LIGHT):
            figure = DRAWINGS["time-to-target"].draw(scenes_of(folder), LIGHT)
            assert figure is not None
            figure.canvas.draw()
        for axes in figure.axes:
            right = axes.get_window_extent().x1
            never = [text.get_window_extent() for text in axes.texts if text.get_text().startswith("never")]
            assert never
            assert all(right <= box.x0 < box.x1 <= figure.bbox.x1 for box in never)

    def test_long_titles_are_whole_and_wrapped(self, tmp_path: Path) -> None:
        labels = [f"a recipe with a name, {'very ' * 12}long, alpha {i}" for i in (1, 2)]
        assert titles(labels) == ["alpha 1", "alpha 2"]
        assert titles(labels[:1]) == labels[:1]
        folder = filled(tmp_path, cells=2, seeds=1)
        raw = json.loads((folder / "comparison.json").read_text())
        for i, cell in enumerate(raw["cells"]):
            cell["label"] = f"reduced-{i}-cifar10-mobilenet, alpha {i}, memory tied to {'speed' if i else 'data'}"
        (folder / "comparison.json").write_text(json.dumps(raw))
        scenes = scenes_of(folder)
        for drawing in DRAWINGS.values():
            with themed(LIGHT):
                figure = drawing.draw(scenes, LIGHT)
                assert figure is not None
                figure.canvas.draw()
            for axes, scene in zip(figure.axes, scenes, strict=True):
                title = axes.get_title(loc="left")
                assert title.replace("\n", " ") == scene.cell.label
            boxes = [axes._left_title.get_window_extent() for axes in figure.axes]  # type: ignore[attr-defined]
            assert boxes[0].x1 < boxes[1].x0
            assert boxes[1].x1 <= figure.bbox.x1


def told(folder: Path) -> tuple[str, dict[str, str], list[str]]:
    """Headline, key facts by name, notices."""
    comparison = load_comparison(folder)
    scenes = scenes_of(folder)
    found = overall([scene.result for scene in scenes])
    facts = {fact.name: f"{fact.value}; {fact.detail}" for fact in sentences.key_facts(scenes, found)}
    return sentences.headline(scenes, found), facts, sentences.notices(comparison, scenes)


def curves(folder: Path, ends: Mapping[str, Mapping[int, tuple[float, float]]], **options: Any) -> Path:
    """One cell, and of each run the only test."""
    describe(folder, {"r": list(ends)}, reference="ref", targets=[0.5], **options)
    for variant, runs in ends.items():
        for seed, test in runs.items():
            write_curve(place(folder, "r", seed, variant), [test], seed=seed)
    return folder


class TestWords:
    def test_the_speed_up_is_that_of_the_first_in_rank_with_its_misses(self, tmp_path: Path) -> None:
        """ "lucky" is 500 times as soon with one seed, and never there with the others."""
        ends = {
            "ref": dict.fromkeys((1, 2, 3), (50.0, 0.5)),
            "lucky": {1: (0.1, 0.5), 2: (0.1, 0.4), 3: (0.1, 0.4)},
            "good": {1: (5.0, 0.6), 2: (5.0, 0.6), 3: (500.0, 0.4)},
        }
        _, facts, notices = told(curves(tmp_path, ends, seeds=[1, 2, 3]))
        assert facts["speed-up on ref"].startswith("10\u00d7; good, first in rank but for the reference")
        assert "2 that both reached, 0 reached alone, 1 missed" in facts["speed-up on ref"]
        assert notices == []

    def test_slower_than_the_reference(self, tmp_path: Path) -> None:
        ends = {"ref": dict.fromkeys((1, 2), (10.0, 0.5)), "v": dict.fromkeys((1, 2), (31.0, 0.6))}
        headline, facts, notices = told(curves(tmp_path, ends))
        assert "first is ref" in facts["best mean rank"]
        assert "v, first in rank but for the reference, takes 3.1\u00d7 the time" in facts["the time of ref"]
        assert (
            headline
            == "v ends 10.0 points above ref in test accuracy, in one cell (beyond the 95\u00a0% interval in 1 of 1)."
        )
        assert notices == ["Two seeds only: intervals are very wide, and differences may be chance."]

    def test_within_chance(self, tmp_path: Path) -> None:
        ends = {"ref": {1: (1.0, 0.5), 2: (1.0, 0.5)}, "v": {1: (1.0, 0.4), 2: (1.0, 0.8)}}
        headline, _, _ = told(curves(tmp_path, ends))
        assert headline.startswith("v ends 10.0 points above ref in test accuracy, in one cell, within chance (beyond")

    @pytest.mark.parametrize("accuracy", [0.3, 0.6])
    def test_nobody_is_first_who_shares_the_place(self, accuracy: float, tmp_path: Path) -> None:
        """Nobody reached the target, or all did at the same time."""
        ends = {label: dict.fromkeys((1, 2), (1.0, accuracy)) for label in ("ref", "a", "b")}
        _, facts, _ = told(curves(tmp_path, ends))
        assert not any("first" in fact for fact in facts.values())

    def test_targets_that_nobody_reached_are_counted(self, tmp_path: Path) -> None:
        ends = {"ref": {1: (2.0, 0.6)}, "v": {1: (1.0, 0.6)}}
        folder = curves(tmp_path, ends, seeds=[1])
        raw = json.loads((folder / "comparison.json").read_text())
        raw["cells"][0]["targets"] = [0.5, 0.7, 0.9]
        (folder / "comparison.json").write_text(json.dumps(raw))
        _, facts, _ = told(folder)
        assert facts["best mean rank"].startswith("1.00; ")
        assert facts["best mean rank"].endswith("first is v; 2 of 3 targets left out, which nobody reached")

    def test_who_misses_runs_is_in_no_headline(self, tmp_path: Path) -> None:
        ends = {
            "ref": {1: (9.0, 0.5), 2: (9.0, 0.5)}, "flaky": {1: (0.1, 0.95)}, "good": {1: (3.0, 0.6), 2: (3.0, 0.6)},
        }  # fmt: skip
        folder = curves(tmp_path, ends)
        headline, facts, notices = told(folder)
        assert headline.startswith("good ends 10.0 points above ref")
        assert facts["speed-up on ref"].startswith("3\u00d7; good")
        assert "1 of 6 runs are not finished" in notices[0]
        assert "r: flaky (1 of 2)" in notices[0]
        write_comparison(folder)
        text = (folder / "table.md").read_text()
        assert "| flaky (1 of 2 runs) |" in text
        assert "| flaky (1 of 2 seeds) |" in text

    def test_nobody_is_beside_a_reference_that_misses_runs(self, tmp_path: Path) -> None:
        ends = {"ref": {1: (9.0, 0.5)}, "a": {1: (0.1, 0.95), 2: (1.0, 0.5)}, "b": {1: (3.0, 0.6), 2: (3.0, 0.6)}}
        headline, _, _ = told(curves(tmp_path, ends))
        assert headline == "a has the highest final test accuracy in 1 of 1 cell."

    def test_steps_short_of_memory_are_one_notice(self, tmp_path: Path) -> None:
        ends = {"ref": {1: (1.0, 0.5)}, "v": {1: (1.0, 0.5)}}
        folder = curves(tmp_path, ends, seeds=[1])
        for label, number in (("ref", 3), ("v", 4)):
            path = place(folder, "r", 1, label) / "summary.json"
            path.write_text(as_json(dataclasses.replace(read_record(Summary, path), violations=number)))
        _, _, notices = told(folder)
        assert "7 steps ran while a device had less memory left than they needed (r: v, 4; r: ref, 3)." in notices

    def test_plans_that_stand_in_are_one_notice(self, tmp_path: Path) -> None:
        ends = {"ref": {1: (1.0, 0.5)}, "v": {1: (1.0, 0.5)}}
        folder = curves(tmp_path, ends, seeds=[1])
        for label in ends:
            run = place(folder, "r", 1, label)
            tasks = read_jsonl(ClientRecord, run / "clients.jsonl")
            stood_in = [dataclasses.replace(task, plan=task.plan and "laptop-smallest") for task in tasks]
            (run / "clients.jsonl").write_text("".join(as_json(task) + "\n" for task in stood_in))
        with (place(folder, "r", 1, "v") / "config.toml").open("a") as file:
            file.write('\n[planner]\nsolver = "greedy-mps"\n')
        tiers = ", ".join(sorted({task.tier for task in tasks if task.plan}))
        _, _, notices = told(folder)
        (notice,) = [each for each in notices if "stands in" in each]
        assert notice.endswith(f"it costs is not that solver\u2019s: v in 1 of 1 cell ({tiers}).")

    def test_seeds_that_came_later_and_other_code(self, tmp_path: Path) -> None:
        folder = curves(tmp_path, {"ref": dict.fromkeys((1, 2, 3), (1.0, 0.5))}, seeds=[1, 2, 3])
        raw = json.loads((folder / "comparison.json").read_text())
        (folder / "comparison.json").write_text(json.dumps(raw | {"first_seeds": 2, "codes": ["abc", "def"]}))
        _, _, notices = told(folder)
        assert "Seed 3 was added later." in sentences.made(load_comparison(folder))
        assert notices[-1].startswith("Runs were made by 2 states of the package\u2019s code (abc, def)")


class TestSharing:
    def cells_with(self, folder: Path, tables: Mapping[str, Any], oracle: str | None = None) -> list[Cell]:
        describe(folder, {"r": list(tables)}, oracle=oracle)
        raw = json.loads((folder / "comparison.json").read_text())
        raw["cells"][0]["variants"] = tables
        (folder / "comparison.json").write_text(json.dumps(raw))
        return list(load_comparison(folder).cells)

    def test_equal_ones(self, tmp_path: Path) -> None:
        cells = self.cells_with(tmp_path, {"a": {"rounds": 2, "method": "x"}, "b": {"rounds": 2, "method": "y"}})
        assert sharing_notices(cells) == []
        assert sharing_words(cells) == "All variants of a cell share data, fleet and initial weights with each seed."

    def test_differences_are_named(self, tmp_path: Path) -> None:
        """The variant of the review that had its own data, model and rounds."""
        own = {"rounds": 50, "model": "resnet20", "data": {"alpha": 100.0, "clients": 9}, "train": {"lr": 0.3}}
        usual = {"rounds": 5, "model": "cnn", "data": {"alpha": 0.3, "clients": 9}, "train": {"lr": 0.1}}
        cells = self.cells_with(tmp_path, {"a": usual, "b": usual, "v": own})
        assert differing(cells[0]) == {"rounds": ("v",), "model": ("v",), "data.alpha": ("v",), "train.lr": ("v",)}
        (notice,) = sharing_notices(cells)
        assert "are those of most variants: v in rounds, model, data.alpha, train.lr. The numbers there" in notice
        assert notice.endswith("(r).")
        assert sharing_words(cells).startswith(
            "All variants of a cell share fleet with each seed. Not all share data or"
        )

    def test_an_oracle_may_have_other_budgets_and_nothing_else(self, tmp_path: Path) -> None:
        tier = {"name": "a", "budget": "25%", "device": "laptop"}
        lifted = {"fleet": {"budget": "100%", "tiers": [tier | {"budget": "100%"}]}}
        cells = self.cells_with(tmp_path, {"o": lifted, "a": {"fleet": {"tiers": [tier]}}}, oracle="o")
        assert sharing_notices(cells) == []
        assert "(but for the oracle\u2019s budgets)" in sharing_words(cells)
        slow = {"fleet": {"tiers": [tier | {"device": "raspberry-pi-4"}]}}
        cells = self.cells_with(tmp_path, {"a": {"fleet": {"tiers": [tier]}}, "b": slow, "o": slow}, oracle="o")
        assert "variants: a in fleet.tiers. The" in sharing_notices(cells)[0]


def test_markdown_by_hand() -> None:
    table = Table(heads=("a", "b"), rows=(("x|y", "1\u00a0s"),), note="Words.")
    assert markdown(table) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 s |\n\nWords.\n"


def test_empty_columns_are_left_out() -> None:
    assert overall_table({}, "").heads == ("variant", "cells")
