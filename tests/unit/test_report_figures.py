"""What the figures show: marks where the records say, labels that do not cover each other, and every odd run drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tests.unit.report_merges import write_merges
from tests.unit.report_runs import EAGER_PEAK_BYTES, MIB, RESIDENT_BYTES, TIERS, budget_bytes, write_run

from fedhybrid.records import RoundRecord, append_jsonl, read_jsonl
from fedhybrid.report.facts import accuracy_curve, tier_order, tiers_of, tightest_plan
from fedhybrid.report.figures import DARK, FIGURES, LIGHT, themed
from fedhybrid.report.figures.style import spread
from fedhybrid.report.load import Runs, load_records, load_runs
from fedhybrid.report.tasks import closest_tasks, failure_counts, largest_gap, training_tasks, violations

LONG_TIERS = {f"tier-with-a-long-name-{i:02d}": i / 14 for i in range(2, 16)}


def drawn(name: str, runs: Runs) -> Figure:
    with themed(LIGHT):
        figure = FIGURES[name].draw(runs, LIGHT)
        assert figure is not None
        figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("two")
    write_run(folder / "exclusion", policy="exclusion", best_ratio=0.8)
    write_run(folder / "fedhybrid")
    return load_runs(folder)


ODD_RUNS: dict[str, Callable[[Path], object]] = {
    "before the first round": lambda f: write_run(f / "a", rounds=0, finished=False),
    "one round": lambda f: write_run(f / "a", rounds=1),
    "unfinished": lambda f: write_run(f / "a", rounds=4, finished=False),
    "nobody fits": lambda f: write_run(f / "a", policy="exclusion", tiers={"25%": 0.25}, rounds=2),
    "every task fails": lambda f: write_run(f / "a", failing=1.0, rounds=2),
    "over budget": lambda f: write_run(f / "a", over_budget=True, rounds=2),
    "many tiers with long names": lambda f: write_run(f / "a", tiers=LONG_TIERS, per_tier=100, cohort=40, rounds=4),
    "seldom tested": lambda f: write_run(f / "a", rounds=7, tested_every=3),
    "asynchronous": lambda f: write_merges(f / "a"),
    "asynchronous, every failure, many devices": lambda f: write_merges(
        f / "a", clients=90, in_flight=60, merges=150, buffer=1, failing=0.5
    ),
    "asynchronous beside rounds": lambda f: [write_merges(f / "a"), write_run(f / "b", rounds=3)],
    "one merge of fresh updates": lambda f: write_merges(f / "a", merges=1, in_flight=1, failing=0.0),
    "six long labels": lambda f: [write_run(f / f"{'a-long-label-' * 4}{i}", rounds=3, seed=i) for i in range(6)],
}


@pytest.mark.parametrize("odd", sorted(ODD_RUNS))
def test_odd_runs_are_drawn(tmp_path: Path, odd: str) -> None:
    ODD_RUNS[odd](tmp_path)
    runs = load_runs(tmp_path)
    for drawing in FIGURES.values():
        with themed(DARK):
            figure = drawing.draw(runs, DARK)
            if figure is not None:
                figure.draw_without_rendering()  # warnings (labels that do not fit) are errors here
        assert drawing.caption(runs) or figure is None


def test_accuracy_lines_are_the_rounds(two: Runs) -> None:
    axes = drawn("accuracy", two).axes[0]
    lines = [line for line in axes.lines if len(np.atleast_1d(line.get_xdata())) == 20]
    for line, run in zip(lines, two.values(), strict=True):
        assert np.allclose(line.get_ydata(), [r.accuracy for r in run.rounds])
        assert np.allclose(60 * np.asarray(line.get_xdata()), [r.virtual_time_s for r in run.rounds])


def test_accuracy_labels_do_not_cover_each_other(tmp_path: Path) -> None:
    for i in range(6):
        write_run(tmp_path / f"variant-{i}", best_ratio=0.9, seed=i)
    figure = drawn("accuracy", load_runs(tmp_path))
    labels = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(labels) == 6
    assert all(below.y1 <= above.y0 for below, above in pairwise(labels))
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in labels)


def test_every_device_has_its_measured_peak_and_budget(two: Runs) -> None:
    figure = drawn("peaks", two)
    for axes, run in zip(figure.axes, two.values(), strict=True):
        tasks = [task for task in closest_tasks(run).values() if task.measured_peak_bytes is not None]
        dots = [line for line in axes.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "none"]
        shown = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in dots])
        assert np.allclose(np.sort(shown), np.sort([(task.measured_peak_bytes or 0) / MIB for task in tasks]))
        bars = np.concatenate([np.asarray(c.get_segments())[:, 0, 1] for c in axes.collections if c.get_segments()])
        assert {round(float(y), 6) for y in bars} == {round(budget_bytes(share) / MIB, 6) for share in TIERS.values()}
    never = [text for text in texts(figure) if "never" in text]
    assert never == ["6 never\ntook part"] * 4


def test_a_task_over_its_budget_stands_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run", over_budget=True, rounds=2)
    runs = load_runs(tmp_path)
    assert len(violations(runs["run"])) == 1
    figure = drawn("peaks", runs)
    assert [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "X"] == [LIGHT.alarm]


def test_participation_says_who_was_left_out(two: Runs) -> None:
    shown = texts(drawn("participation", two))
    assert shown.count("0 of 6") == 4
    assert shown.count("6 of 6") == 6
    assert "exclusion left out 25%, 40%, 60%, 80%." in FIGURES["participation"].caption(two)
    for run in two.values():
        assert run.summary is not None
        counted = {t.name: (t.reached, t.tasks, t.failed) for t in tiers_of(run).values()}
        told = {n: (p["reached"], p["tasks"], p["failed"]) for n, p in run.summary.participation.items()}
        assert counted == told


def test_tiers_are_ordered_by_budget_even_where_nobody_took_part(tmp_path: Path) -> None:
    shares = {"large": 1.0, "small": 0.25, "middle": 0.5}
    write_run(tmp_path / "exclusion", policy="exclusion", tiers=shares, rounds=2)
    runs = load_runs(tmp_path)
    assert tier_order(runs) == ["small", "middle", "large"]
    assert tiers_of(runs["exclusion"])["small"].budget_bytes == budget_bytes(0.25)


def test_timeline_shows_the_tightest_plan_with_its_measured_peak(two: Runs) -> None:
    tight = tightest_plan(two)
    assert tight is not None
    assert (tight.label, tight.name, tight.budget_bytes) == ("fedhybrid", "p25", budget_bytes(0.25))
    measured = max(t.measured_peak_bytes or 0 for t in two["fedhybrid"].clients if t.plan == "p25")
    assert tight.measured_peak_bytes == measured
    figure = drawn("timeline", two)
    steps = [line for line in figure.axes[0].lines if len(np.atleast_1d(line.get_xdata())) > 100]
    for line, name in zip(steps, ("eager", "planned"), strict=True):
        bytes_held = np.asarray(line.get_ydata()) * MIB
        assert np.allclose(bytes_held, tight.plan["timelines"][name])
        at = tight.plan["timeline_marks"][name]["backward_at"]
        assert np.asarray(line.get_xdata())[at] == 1.0  # both passes line up
    assert any(f"measured {measured / MIB:.1f}" in text for text in texts(figure))


def test_a_plan_without_marks_is_drawn_without_the_boundary(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    for path in (folder / "plans").glob("*.json"):
        plan = json.loads(path.read_text())
        del plan["timeline_marks"]
        path.write_text(json.dumps(plan))
    figure = drawn("timeline", load_runs(tmp_path))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["step"]


def test_cohorts_count_completed_tasks_of_each_round(two: Runs) -> None:
    figure = drawn("cohorts", two)
    table = np.asarray(figure.axes[1].images[0].get_array())
    done = [task for task in two["fedhybrid"].clients if task.outcome == "completed"]
    assert table.shape == (5, 20)
    assert table.sum() == len(done)
    assert table[0, 4] == sum(task.round == 4 and task.tier == "25%" for task in done)


def test_the_largest_gap_is_relative_to_what_was_measured(two: Runs) -> None:
    gap = largest_gap(two["fedhybrid"])
    assert gap is not None
    ratios = [
        abs((t.planned_peak_bytes or 0) - t.measured_peak_bytes) / t.measured_peak_bytes
        for t in two["fedhybrid"].clients
        if t.measured_peak_bytes is not None
    ]
    assert gap.gap_ratio == max(ratios)
    assert RESIDENT_BYTES < (gap.task.measured_peak_bytes or 0) <= EAGER_PEAK_BYTES


def test_rounds_without_a_test_are_no_points_of_the_curve(tmp_path: Path) -> None:
    write_run(tmp_path / "run", rounds=8, tested_every=3)
    runs = load_runs(tmp_path)
    tests = accuracy_curve(runs["run"])
    assert [r.accuracy is not None for r in runs["run"].rounds] == [i in {2, 5, 7} for i in range(8)]
    line = drawn("accuracy", runs).axes[0].lines[0]
    assert np.allclose(line.get_ydata(), [test.accuracy for test in tests])
    assert len(np.asarray(line.get_xdata())) == 3


def test_tests_on_devices_are_no_participation(tmp_path: Path) -> None:
    write_run(tmp_path / "run", rounds=6, tested_every=2, failing=0.0)
    run = load_runs(tmp_path)["run"]
    assert len(run.clients) == len(training_tasks(run)) + 3
    assert sum(tier.tasks for tier in tiers_of(run).values()) == 6 * 8
    assert np.asarray(drawn("cohorts", {"run": run}).axes[0].images[0].get_array()).sum() == 6 * 8
    assert closest_tasks(run).keys() == {task.client for task in training_tasks(run)}


def test_fairness_has_a_dot_for_every_tier_and_the_worst_tenth(two: Runs) -> None:
    reached, served = drawn("fairness", two).axes
    for axes, rows in ((reached, 5), (served, 6)):
        assert sum(line.get_marker() == "o" for line in axes.lines) == 2 * rows
    summary = two["fedhybrid"].summary
    assert summary is not None
    dots = [float(np.asarray(line.get_xdata())[0]) for line in served.lines if line.get_marker() == "o"][-6:]
    assert dots == [*summary.accuracy_by_tier.values(), summary.worst_tenth_accuracy]
    assert [tick.get_text() for tick in reached.get_yticklabels()] == [*TIERS, "worst tenth"]
    assert "serves 100% with" in FIGURES["fairness"].caption(two)


def test_failures_are_shares_of_each_tiers_tasks(tmp_path: Path) -> None:
    write_merges(tmp_path / "run", failing=0.4)
    run = load_runs(tmp_path)["run"]
    axes = drawn("failures", {"run": run}).axes[0]
    tiers = tiers_of(run)
    for row, name in enumerate(tier_order({"run": run})):
        bars = [patch for patch in axes.patches if patch.get_y() < row < patch.get_y() + patch.get_height()]
        whole = tiers[name].tasks + tiers[name].failed
        assert sum(patch.get_width() for patch in bars) == pytest.approx(tiers[name].failed / whole)
    assert sum(failure_counts(run).values()) == sum(tier.failed for tier in tiers.values())


def test_bars_of_tasks_go_from_start_to_end_and_never_overlap(tmp_path: Path) -> None:
    write_merges(tmp_path / "devices")
    write_merges(tmp_path / "slots", clients=90, in_flight=60, merges=120, buffer=3)
    runs = load_runs(tmp_path)
    figure = drawn("tasks", runs)
    for axes, run in zip(figure.axes, runs.values(), strict=True):
        bars = [(p.get_y(), p.get_x(), p.get_x() + p.get_width()) for p in axes.patches]
        tasks = sorted(run.clients, key=lambda task: (task.at_s - task.virtual_time_s, task.at_s))[:200]
        unit_s = 60.0 if max(task.at_s for task in tasks) >= 120 else 1.0
        assert np.allclose(sorted(bar[2] for bar in bars), sorted(task.at_s / unit_s for task in tasks))
        assert np.allclose(
            sorted(bar[1] for bar in bars), sorted((task.at_s - task.virtual_time_s) / unit_s for task in tasks)
        )
        for (row, _, end), (next_row, start, _) in pairwise(sorted(bars)):
            assert row != next_row or start >= end - 1e-9
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["small", "middle", "large"]
    assert "the first 200 of" in figure.axes[1].get_title(loc="left")


def test_staleness_bars_are_shares_of_updates(tmp_path: Path) -> None:
    write_merges(tmp_path / "run")
    run = load_runs(tmp_path)["run"]
    axes = drawn("staleness", {"run": run}).axes[0]
    ages = [task.staleness for task in run.clients if task.outcome == "completed"]
    assert [p.get_height() for p in axes.patches] == pytest.approx(np.bincount(ages) / len(ages))
    assert f"mean {np.mean(ages):.1f}" in texts(axes.figure)  # type: ignore[arg-type]


def test_rounds_have_no_task_timeline_and_no_staleness(two: Runs) -> None:
    assert FIGURES["tasks"].draw(two, LIGHT) is None
    assert FIGURES["staleness"].draw(two, LIGHT) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.5))
def test_spread_keeps_order_and_distance(positions: list[float], gap: float) -> None:
    placed = spread(positions, gap)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert np.mean(placed) == pytest.approx(np.mean(positions))
    far = [10 * gap * i for i in range(len(positions))]
    assert spread(far, gap) == pytest.approx(far)


def test_a_stream_shows_what_is_left_of_each_task(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert FIGURES["stream"].draw({"": load_records(tmp_path)}, LIGHT) is None
    path = tmp_path / "rounds.jsonl"
    rounds = [
        dataclasses.replace(
            record, task=record.round // 2, task_accuracies=[0.9 - 0.1 * n for n in range(record.round // 2 + 1)]
        )
        for record in read_jsonl(RoundRecord, path)
    ]
    path.unlink()
    append_jsonl(path, rounds)
    seen, left = drawn("stream", {"run": load_records(tmp_path)}).axes
    last = {record.task: record for record in rounds}
    assert list(seen.lines[0].get_ydata()) == [record.accuracy for record in last.values()]
    assert list(left.lines[0].get_ydata()) == rounds[-1].task_accuracies
