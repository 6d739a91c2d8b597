"""`fedhybrid pareto`: a curve that is monotone, its files, and every way to be refused."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from tests.integration.cli_runner import Ran, assert_refused, fedhybrid

from fedhybrid.cli.subject import Subject, build, capture
from fedhybrid.cli.tradeoff import PEERS
from fedhybrid.planner import Plan, monotone

SMALL = ("resnet20", "width=0.5", "--batch", "8", "--input", "3x16x16", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curve")


@pytest.fixture(scope="module")
def ran(folder: Path) -> Ran:
    return fedhybrid("pareto", *SMALL, "--budgets", "100,60,40,3", "--measure", "--json", "--out", folder)


class TestCurve:
    def test_a_smaller_budget_costs_bytes_never_more_and_time_never_less(self, ran: Ran) -> None:
        assert ran.code == 0, ran.err
        points = [p for p in json.loads(ran.out)["points"] if p["kind"] == "plan"]
        assert [p["label"] for p in points] == ["100%", "60%", "40%", "smallest"]
        for larger, smaller in itertools.pairwise(points):
            assert smaller["budget_bytes"] < larger["budget_bytes"]
            assert smaller["peak_bytes"] <= larger["peak_bytes"]
            assert smaller["extra_time_s"] >= larger["extra_time_s"]
            assert smaller["bound_extra_time_s"] >= larger["bound_extra_time_s"]
        for point in points:
            assert point["peak_bytes"] <= point["budget_bytes"]
            assert point["bound_extra_time_s"] <= point["extra_time_s"]

    def test_what_was_planned_is_measured(self, ran: Ran) -> None:
        points = json.loads(ran.out)["points"]
        assert all(p["measured_peak_bytes"] == p["peak_bytes"] for p in points)
        assert all(p["time_ratio"] > 0 for p in points)

    def test_peers_and_eager_stand_beside_it(self, ran: Ran) -> None:
        answer = json.loads(ran.out)
        kinds = {p["label"]: p["kind"] for p in answer["points"]}
        assert {name for name, kind in kinds.items() if kind == "peer"} == set(PEERS)
        eager = next(p for p in answer["points"] if p["kind"] == "eager")
        assert eager["peak_bytes"] == answer["eager_peak_bytes"]
        assert eager["peak_share_ratio"] == 1.0

    def test_budgets_that_no_plan_fits_are_named(self, ran: Ran) -> None:
        assert json.loads(ran.out)["infeasible"] == ["3%"]

    def test_files_say_the_same(self, ran: Ran, folder: Path) -> None:
        with (folder / "pareto.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        points = json.loads(ran.out)["points"]
        assert [int(row["peak_bytes"]) for row in rows] == [p["peak_bytes"] for p in points]
        assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")

    def test_the_table_has_a_row_for_each_point(self) -> None:
        ran = fedhybrid("pareto", *SMALL, "--budgets", "80%")
        assert ran.code == 0, ran.err
        for name in ("80%", "smallest", "keep-all", "PyTorch eager"):
            assert any(line.startswith(name) for line in ran.out.splitlines()), (name, ran.out)


class TestMonotone:
    def plan(self, budget_bytes: int, *, peak_bytes: int, extra_time_s: float, bound_extra_time_s: float) -> Plan:
        return dataclasses.replace(
            self.any_plan,
            budget_bytes=budget_bytes,
            peak_bytes=peak_bytes,
            extra_time_s=extra_time_s,
            bound_extra_time_s=bound_extra_time_s,
        )

    @pytest.fixture(autouse=True)
    def _some_plan(self) -> None:
        subject = Subject(
            model="cnn", options=(), batch=2, input_text="1x8x8", classes=2, optimizer="sgd", lr=None, threads=1
        )
        built = build(subject, [])
        assert built is not None
        self.any_plan = capture(built, timed=False).keep_all()

    def test_a_better_plan_of_a_smaller_budget_is_carried_over(self) -> None:
        worse = self.plan(100, peak_bytes=95, extra_time_s=3.0, bound_extra_time_s=0.5)
        better = self.plan(80, peak_bytes=70, extra_time_s=2.0, bound_extra_time_s=1.0)
        first, second = monotone([worse, better])
        assert (first.budget_bytes, first.peak_bytes, first.extra_time_s) == (100, 70, 2.0)
        assert first.bound_extra_time_s == 0.5  # what was proven for 80 does not hold for 100
        assert second == better

    def test_a_bound_of_a_larger_budget_holds_for_smaller_ones(self) -> None:
        larger = self.plan(100, peak_bytes=100, extra_time_s=1.0, bound_extra_time_s=0.8)
        smaller = self.plan(50, peak_bytes=50, extra_time_s=4.0, bound_extra_time_s=0.0)
        assert [p.bound_extra_time_s for p in monotone([larger, smaller])] == [0.8, 0.8]

    def test_a_curve_that_is_monotone_stays(self) -> None:
        plans = [self.plan(b, peak_bytes=b, extra_time_s=100.0 / b, bound_extra_time_s=0.0) for b in (100, 60, 20)]
        assert monotone(plans) == plans


class TestRefusal:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--budgets", "100,some"), "some"),
            (("--budgets", " , "), "--budgets must name at least one"),
            (("--solver", "gredy"), "Did you mean 'greedy'?"),
            (("--time-limit", "0"), "--time-limit must be"),
        ],
    )
    def test_bad_option(self, arguments: tuple[str, ...], expected: str) -> None:
        assert_refused(fedhybrid("pareto", *SMALL, *arguments), expected)

    def test_all_problems_at_once(self) -> None:
        arguments = ("resnet81", "--batch", "0", "--input", "3x0x32", "--budgets", "-1%")
        ran = fedhybrid("pareto", *arguments)
        assert_refused(ran, "--batch must be", "3x0x32", "resnet18", "-1%")
