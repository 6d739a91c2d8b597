"""The numbers of a comparison against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
from scipy.special import stdtrit
from tests.unit.comparison_parts import describe, place, write_curve
from tests.unit.report_runs import write_run

from fedhybrid.errors import ConfigError
from fedhybrid.report.comparison.figures.curves import Mean, mean_curve
from fedhybrid.report.comparison.load import load_comparison
from fedhybrid.report.comparison.measuring import measure_cell, plan_ratio
from fedhybrid.report.comparison.overall import Spread, overall
from fedhybrid.report.comparison.results import CellResult
from fedhybrid.report.comparison.statistics import estimate, geometric_mean, mean_or_none, ranks, students_t
from fedhybrid.report.comparison.table import outcome_table, overall_table
from fedhybrid.report.comparison.timing import Beside
from fedhybrid.report.load import load_records

# (virtual seconds, accuracy) of each test. The reference is slow and reaches 0.8 with the first seed only.
CURVES = {
    "slow": {1: [(10.0, 0.5), (20.0, 0.7), (40.0, 0.8)], 2: [(10.0, 0.4), (20.0, 0.6), (60.0, 0.7)]},
    "quick": {1: [(1.0, 0.5), (5.0, 0.85), (9.0, 0.9)], 2: [(1.0, 0.3), (8.0, 0.6), (30.0, 0.8)]},
    "weak": {1: [(2.0, 0.2), (4.0, 0.3), (6.0, 0.4)], 2: [(2.0, 0.2), (4.0, 0.5), (6.0, 0.4)]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = describe(
        tmp_path_factory.mktemp("numbers"), {"r, alpha 0.1": list(CURVES)}, reference="slow", oracle="weak"
    )
    for variant, runs in CURVES.items():
        for seed, curve in runs.items():
            write_curve(place(found, "r, alpha 0.1", seed, variant), curve, seed=seed)
    return found


@pytest.fixture(scope="module")
def cell(folder: Path) -> CellResult:
    return measure_cell(load_comparison(folder).cells[0])


class TestStatistics:
    @pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 29, 120])
    def test_students_t_is_scipys(self, freedom: int) -> None:
        assert students_t(freedom) == pytest.approx(stdtrit(freedom, 0.975), rel=1e-9)
        assert students_t(freedom, 0.8) == pytest.approx(stdtrit(freedom, 0.9), rel=1e-9)

    def test_interval_by_hand(self) -> None:
        found = estimate([0.6, 0.7, 0.8])  # deviation 0.1, standard error 0.1 / sqrt(3), t 4.3027
        assert found is not None
        assert found.mean == pytest.approx(0.7)
        assert found.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)

    def test_one_number_has_no_interval_and_none_no_mean(self) -> None:
        one = estimate([0.4])
        assert one is not None
        assert (one.mean, one.half) == (0.4, None)
        assert estimate([]) is geometric_mean([]) is mean_or_none([None]) is None

    def test_equal_ones_and_those_that_never_came_share_places(self) -> None:
        assert ranks({"a": 1.0, "b": math.inf, "c": math.inf}) == {"a": 1.0, "b": 2.5, "c": 2.5}


class TestCell:
    def test_accuracies_and_differences(self, cell: CellResult) -> None:
        quick = cell.variants["quick"]
        assert quick.final.values == (0.9, 0.8)
        assert quick.best.mean == pytest.approx(0.85)
        assert quick.difference is not None
        assert quick.difference.values == pytest.approx((0.1, 0.1))  # 0.9 - 0.8 and 0.8 - 0.7
        assert cell.variants["weak"].best.values == (0.4, 0.5)
        assert cell.variants["slow"].difference is None

    def test_times_to_targets(self, cell: CellResult) -> None:
        half, high = cell.variants["quick"].targets
        assert (half.target, half.mean_s, half.reached, half.runs) == (0.5, statistics.fmean([1.0, 8.0]), 2, 2)
        assert half.beside == Beside(ratio=pytest.approx(math.sqrt(10 / 1 * 20 / 8)), both=2, alone=0, missed=0)
        assert (high.mean_s, high.reached) == (statistics.fmean([5.0, 30.0]), 2)
        # With the other seed the reference never came there.
        assert high.beside == Beside(ratio=pytest.approx(40 / 5), both=1, alone=1, missed=0)
        half, high = cell.variants["weak"].targets
        assert (half.mean_s, half.reached, half.runs) == (4.0, 1, 2)
        assert half.beside == Beside(ratio=pytest.approx(20 / 4), both=1, alone=0, missed=1)
        assert (high.mean_s, high.reached, high.at_least) == (None, 0, None)
        assert high.beside == Beside(ratio=None, both=0, alone=0, missed=1)

    def test_the_reference_is_not_compared_with_itself(self, cell: CellResult) -> None:
        assert [found.beside for found in cell.variants["slow"].targets] == [None, None]

    def test_time_to_the_best_of_the_reference(self, cell: CellResult) -> None:
        best = cell.variants["quick"].reference_best
        assert best is not None
        assert best.mean_s == statistics.fmean([5.0, 30.0])  # to 0.8 with the first seed, to 0.7 with the second
        assert best.beside == Beside(ratio=pytest.approx(math.sqrt(40 / 5 * 60 / 30)), both=2, alone=0, missed=0)

    def test_accuracy_when_the_reference_was_done(self, cell: CellResult) -> None:
        """The reference took 40 s and 60 s."""
        found = {label: each.at_reference_end and each.at_reference_end.values for label, each in cell.variants.items()}
        assert found == {"slow": (0.8, 0.7), "quick": (0.9, 0.8), "weak": (0.4, 0.4)}

    def test_accuracy_in_the_middle_of_a_run(self, tmp_path: Path) -> None:
        describe(tmp_path, {"r": ["ref", "long", "late"]}, seeds=[1], reference="ref")
        curves = {"ref": [(1.0, 0.2), (10.0, 0.4)], "long": [(9.0, 0.3), (99.0, 0.9)], "late": [(50.0, 0.9)]}
        for variant, curve in curves.items():
            write_curve(place(tmp_path, "r", 1, variant), curve)
        variants = measure_cell(load_comparison(tmp_path).cells[0]).variants
        assert variants["long"].at_reference_end is not None
        assert variants["long"].at_reference_end.mean == 0.3
        assert variants["late"].at_reference_end is None

    def test_how_close_to_the_oracle(self, cell: CellResult) -> None:
        quick, slow, oracle = (cell.variants[label] for label in ("quick", "slow", "weak"))
        assert quick.short is not None
        assert quick.short.values == pytest.approx((0.5, 0.4))
        # It reached 0.5 only, with the second seed.
        assert quick.oracle == Beside(ratio=pytest.approx(4.0 / 8.0), both=1, alone=3, missed=0)
        assert slow.oracle == Beside(ratio=pytest.approx(4.0 / 20.0), both=1, alone=2, missed=0)
        assert (oracle.short, oracle.oracle) == (None, None)
        found = overall([cell])["quick"]
        assert found.oracle is not None
        assert (found.oracle.mean, found.oracle.count) == (pytest.approx(2.0), 1)
        assert found.oracle_counts == (1, 3, 0)

    def test_a_bound_where_the_reference_never_came(self, folder: Path) -> None:
        (loaded,) = load_comparison(folder).cells
        only_second = {label: {2: runs[2]} for label, runs in loaded.runs.items()}
        cell = measure_cell(type(loaded)(**{**vars(loaded), "runs": only_second, "seeds": (2,)}))
        _, high = cell.variants["quick"].targets
        assert high.beside == Beside(ratio=None, both=0, alone=1, missed=0)
        assert high.at_least == 60 / 30

    def test_places(self, cell: CellResult) -> None:
        places = {label: [found.rank for found in each.targets] for label, each in cell.variants.items()}
        assert places == {"slow": [2.0, 2.0], "quick": [1.0, 1.0], "weak": [None, None]}
        assert cell.unreached == 0

    def test_no_places_where_nobody_came(self, folder: Path) -> None:
        (loaded,) = load_comparison(folder).cells
        cell = measure_cell(type(loaded)(**{**vars(loaded), "targets": (0.5, 0.95)}))
        assert [found.rank for found in cell.variants["quick"].targets] == [1.0, None]
        assert cell.unreached == 1

    def test_places_are_of_seeds_that_all_have_finished(self, tmp_path: Path) -> None:
        """Over all seeds that each has, "quick" would be first with the second one, where "best" has no run."""
        describe(tmp_path, {"r": ["quick", "best", "none"]}, targets=[0.5])
        for variant, seed, time_s in (("quick", 1, 2.0), ("quick", 2, 2.0), ("best", 1, 1.0)):
            write_curve(place(tmp_path, "r", seed, variant), [(time_s, 0.6)], seed=seed)
        cell = measure_cell(load_comparison(tmp_path).cells[0])
        assert {label: each.targets[0].rank for label, each in cell.variants.items()} == {"quick": 2.0, "best": 1.0}
        assert cell.missing == {"best": 1, "none": 2}
        found = overall([cell])
        assert {label: (each.runs, each.missing) for label, each in found.items()} == {"quick": (2, 0), "best": (1, 1)}

    def test_participation_and_the_worst_tier(self, cell: CellResult, folder: Path) -> None:
        assert cell.tiers == ("25%", "40%", "60%", "80%", "100%")
        runs = [load_records(place(folder, "r, alpha 0.1", seed, "quick")) for seed in (1, 2)]
        summaries = [run.summary for run in runs if run.summary]
        quick = cell.variants["quick"]
        for tier in cell.tiers:
            told = [summary.participation[tier] for summary in summaries]
            assert quick.tiers[tier].reached == statistics.fmean(each["reached"] for each in told)
            assert quick.tiers[tier].tasks == statistics.fmean(each["tasks"] for each in told)
        assert quick.worst_tier is not None
        assert quick.worst_tier.values == tuple(
            min(value for value in summary.accuracy_by_tier.values() if value is not None) for summary in summaries
        )
        assert quick.bytes_up == statistics.fmean(summary.bytes_up for summary in summaries)

    def test_overhead_by_steps(self, tmp_path: Path) -> None:
        run = load_records(write_run(tmp_path / "run", rounds=3, tiers={"25%": 0.25, "60%": 0.6, "100%": 1.0}))
        quarter, large = run.plans["p25"], run.plans["p60"]
        quarter |= {"step_time_s": 3.0, "extra_time_s": 1.0}  # half as long again
        large |= {"step_time_s": 3.0, "extra_time_s": 0.0}
        steps = {name: sum(task.steps for task in run.clients if task.plan == name) for name in ("p25", "p60")}
        assert min(steps.values()) > 0
        assert plan_ratio([run]) == pytest.approx((1.5 * steps["p25"] + steps["p60"]) / sum(steps.values()))
        assert plan_ratio([run], "25%") == pytest.approx(1.5)
        assert plan_ratio([run], "60%") == pytest.approx(1.0)
        for plan in run.plans.values():
            plan["peak_bytes"] = plan["keep_all_peak_bytes"]
        assert plan_ratio([run]) is None

    def test_a_task_over_its_budget_is_counted(self, tmp_path: Path) -> None:
        describe(tmp_path, {"r": ["a"]}, seeds=[1])
        write_run(place(tmp_path, "r", 1, "a"), over_budget=True, rounds=2)
        found = measure_cell(load_comparison(tmp_path).cells[0]).variants["a"]
        assert found.over_budget == 1
        assert found.peak_ratio is not None
        assert found.peak_ratio > 1

    def test_mean_curve(self, folder: Path) -> None:
        runs = load_comparison(folder).cells[0].runs["slow"]
        assert mean_curve(runs)[-1] == Mean(time_s=50.0, accuracy=0.75, low=0.7, high=0.8)
        assert len(mean_curve(runs)) == 3


class TestOverall:
    def test_mean_and_range_over_cells(self, tmp_path: Path) -> None:
        describe(tmp_path, {"a": ["slow", "quick"], "b": ["slow", "quick"]}, seeds=[1], reference="slow", targets=[0.5])
        ends = {"a": ([(8.0, 0.6)], [(2.0, 0.7)]), "b": ([(9.0, 0.6)], [(9.0, 0.5)])}
        for label, curves in ends.items():
            for variant, curve in zip(("slow", "quick"), curves, strict=True):
                write_curve(place(tmp_path, label, 1, variant), curve)
        found = overall([measure_cell(cell) for cell in load_comparison(tmp_path).cells])
        quick = found["quick"]
        assert quick.difference is not None
        assert (quick.difference.low, quick.difference.high) == pytest.approx((-0.1, 0.1))
        assert quick.difference.mean == pytest.approx(0.0)
        assert quick.speed_up == Spread(mean=pytest.approx(2.0), low=1.0, high=pytest.approx(4.0), count=2)
        assert (quick.rank, found["slow"].rank) == ((1 + 1.5) / 2, (2 + 1.5) / 2)
        assert quick.counts == (2, 0, 0)
        assert (quick.best_missed, quick.best_runs) == (1, 2)

    def test_a_cell_counts_once_however_many_targets_are_reached(self, tmp_path: Path) -> None:
        describe(tmp_path, {"a": ["ref", "v"], "b": ["ref", "v"]}, seeds=[1], reference="ref", targets=[0.5, 0.6])
        ends = {"a": ([(8.0, 0.6)], [(2.0, 0.6)]), "b": ([(9.0, 0.5)], [(9.0, 0.5)])}
        for label, curves in ends.items():
            for variant, curve in zip(("ref", "v"), curves, strict=True):
                write_curve(place(tmp_path, label, 1, variant), curve)
        found = overall([measure_cell(cell) for cell in load_comparison(tmp_path).cells])["v"]
        assert found.speed_up == Spread(mean=pytest.approx(2.0), low=1.0, high=pytest.approx(4.0), count=2)
        assert found.counts == (3, 0, 0)

    def test_targets_that_one_of_the_two_missed_are_counted(self, folder: Path, cell: CellResult) -> None:
        found = overall([cell])
        # Four targets of two seeds: the reference reached three of them.
        assert found["weak"].counts == (1, 0, 2)
        assert found["quick"].counts == (3, 1, 0)
        assert (found["weak"].best_missed, found["weak"].best_runs) == (2, 2)

    def test_one_lucky_seed_is_no_speed_up_of_all(self, tmp_path: Path) -> None:
        describe(tmp_path, {"r": ["ref", "lucky"]}, seeds=[1, 2, 3], reference="ref", targets=[0.5])
        for seed in (1, 2, 3):
            write_curve(place(tmp_path, "r", seed, "ref"), [(50.0, 0.5)], seed=seed)
            write_curve(place(tmp_path, "r", seed, "lucky"), [(0.1, 0.5 if seed == 1 else 0.4)], seed=seed)
        cell = measure_cell(load_comparison(tmp_path).cells[0])
        found = overall([cell])
        assert found["lucky"].counts == (1, 0, 2)
        (row,) = (row for row in outcome_table(cell).rows if row[0] == "lucky")
        assert "500\u00d7 (1 of 3)" in row
        (row,) = (row for row in overall_table(found, "ref").rows if row[0] == "lucky")
        assert "500\u00d7 in 1 of 3" in row
        assert "1 / 0 / 2" in row

    def test_cells_beyond_their_interval(self, tmp_path: Path) -> None:
        """Differences 0.1 and 0.1 have an interval of no width; -0.1 and 0.3 one that has zero in it."""
        describe(tmp_path, {"a": ["ref", "v"], "b": ["ref", "v"]}, reference="ref")
        ends = {"a": (0.6, 0.6), "b": (0.4, 0.8)}
        for label, accuracies in ends.items():
            for seed, accuracy in zip((1, 2), accuracies, strict=True):
                write_curve(place(tmp_path, label, seed, "ref"), [(1.0, 0.5)], seed=seed)
                write_curve(place(tmp_path, label, seed, "v"), [(1.0, accuracy)], seed=seed)
        found = overall([measure_cell(cell) for cell in load_comparison(tmp_path).cells])["v"]
        assert (found.above, found.below, found.intervals) == (1, 0, 2)


class TestLoad:
    def test_runs_that_are_not_finished_are_left_out_and_counted(self, tmp_path: Path) -> None:
        describe(tmp_path, {"r": ["a", "b"]})
        write_run(place(tmp_path, "r", 1, "a"), rounds=2)
        write_run(place(tmp_path, "r", 2, "a"), rounds=2, finished=False)
        (cell,) = load_comparison(tmp_path).cells
        assert cell.missing == {"a": 1, "b": 2}
        assert {label: list(runs) for label, runs in cell.finished.items()} == {"a": [1]}

    def test_no_comparison(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is not the folder of a comparison"):
            load_comparison(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", json.dumps({"cells": [{}]}), "{}"])
    def test_a_damaged_one(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "comparison.json").write_text(content)
        with pytest.raises(ConfigError, match=r"comparison.json is damaged"):
            load_comparison(tmp_path)

    def test_damaged_runs_are_named_at_once(self, tmp_path: Path) -> None:
        describe(tmp_path, {"r": ["a", "b"]}, seeds=[1])
        for label in ("a", "b"):
            (write_run(place(tmp_path, "r", 1, label), rounds=1) / "rounds.jsonl").write_text("no\n")
        with pytest.raises(ConfigError) as caught:
            load_comparison(tmp_path)
        assert len(caught.value.problems) == 2
