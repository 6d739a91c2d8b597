"""Budget, planned and measured peak of every device, grouped by budget tier."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedhybrid.records import ClientRecord
from fedhybrid.report.facts import TierFacts, fleet_size, step_bytes, tier_order, tiers_of
from fedhybrid.report.figures.style import Theme, colours, new_figure
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tasks import (
    clients_reached,
    closest_tasks,
    largest_gap,
    measured_tasks,
    training_tasks,
    violations,
)
from fedhybrid.report.text import MIB, mib, percent, shorten

__all__ = ["caption", "draw"]

_BAND = 0.86  # share of a tier's column that its devices fill
_SLOTS = 60  # devices of one tier that are drawn even if they never took part; beyond, their number stands for them
_WIDE_TIERS = 8


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no run has given out a task."""
    shown = {label: run for label, run in runs.items() if training_tasks(run)}
    if not shown:
        return None
    tiers = tier_order(runs)
    figure = new_figure((2.9 if len(shown) == 1 else 2.35) * len(shown) + 0.75)
    panels = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    top_bytes = max(
        max(task.budget_bytes, task.measured_peak_bytes or 0) for run in shown.values() for task in training_tasks(run)
    )
    for axes, (label, run) in zip(panels, shown.items(), strict=True):
        axes.set_ylim(0, 1.22 * top_bytes / MIB)
        axes.set_xlim(-0.5, len(tiers) - 0.5)
        axes.set_title(f"{shorten(label, 30)}: {_headline(run)}")
        axes.set_ylabel("MiB")
        axes.grid(axis="y")
        axes.tick_params(axis="x", length=0)
        _draw_eager(axes, run, theme)
        facts = tiers_of(run)
        for column, tier in enumerate(tiers):
            if tier in facts:
                roomy = len(tiers) <= _WIDE_TIERS
                _draw_tier(axes, run, column, facts[tier], theme=theme, colour=colours(runs, theme)[label], roomy=roomy)
                if roomy:
                    _write_amounts(axes, run, column, facts[tier], theme)
    panels[-1].set_xticks(
        range(len(tiers)),
        [shorten(tier, 16) for tier in tiers],
        rotation=40 if len(tiers) > _WIDE_TIERS else 0,
        ha="right" if len(tiers) > _WIDE_TIERS else "center",
    )
    panels[-1].set_xlabel("budget tier (one column of marks per device)")
    figure.legend(handles=_legend(theme), loc="outside upper left", ncols=5, columnspacing=1.4, handletextpad=0.5)
    return figure


def _headline(run: RunRecords) -> str:
    over = sum(task.kind != "evaluate" for task in violations(run))
    fleet = fleet_size(run)
    part = f"{clients_reached(run)} of {fleet} devices" if fleet else f"{clients_reached(run)} devices"
    tasks = sum(task.kind != "evaluate" for task in measured_tasks(run))
    return f"{part}, {tasks} tasks measured, {over or 'none'} over budget"


def _draw_eager(axes: Axes, run: RunRecords, theme: Theme) -> None:
    step = step_bytes(run)
    if step is None or step[1] / MIB > axes.get_ylim()[1]:
        return
    axes.axhline(step[1] / MIB, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"PyTorch\neager\n{mib(step[1])}", (1.008, step[1] / MIB), xycoords=axes.get_yaxis_transform(), fontsize=7.5,
        color=theme.muted, va="center", annotation_clip=False,
    )  # fmt: skip


def _draw_tier(
    axes: Axes, run: RunRecords, column: int, facts: TierFacts, *, theme: Theme, colour: str, roomy: bool
) -> None:
    tasks = sorted((t for t in closest_tasks(run).values() if t.tier == facts.name), key=lambda t: t.client)
    absent = max(0, (facts.clients or 0) - len(tasks))
    slots = max(1, len(tasks) + (absent if absent <= _SLOTS else 0))
    places = column + _BAND * ((np.arange(slots) + 0.5) / slots - 0.5)
    half, size = 0.5 * _BAND / slots, float(np.clip(42 / slots, 2.2, 6.0))
    used, free = places[: len(tasks)], places[len(tasks) :]
    floor = 0.035 * axes.get_ylim()[1]
    # Each device's own budget, because budgets may differ inside a tier and move; a thin line where no task tells it.
    axes.hlines(
        [t.budget_bytes / MIB for t in tasks], used - half, used + half, color=theme.ink, linewidth=1.8, zorder=3
    )
    if facts.budget_bytes is not None and (len(free) or not tasks):
        start = free[0] - half if len(free) else column - _BAND / 2
        axes.hlines(facts.budget_bytes / MIB, start, column + _BAND / 2, color=theme.ink, linewidth=0.9, zorder=2)
    _draw_marks(axes, list(zip(used, tasks, strict=True)), floor=floor, size=size, theme=theme, colour=colour)
    if absent:
        drawn = absent <= _SLOTS
        if drawn:
            axes.plot(
                free, [floor] * len(free), marker="s", linestyle="", markersize=size * 0.6, markerfacecolor="none",
                markeredgecolor=theme.muted, markeredgewidth=0.8,
            )  # fmt: skip
        axes.annotate(
            f"{absent:,} never\ntook part" if roomy else f"{absent:,}",
            (float(free.mean()) if drawn else column, 2 * floor),
            ha="center",
            fontsize=7.5,
            color=theme.muted,
        )


def _write_amounts(axes: Axes, run: RunRecords, column: int, facts: TierFacts, theme: Theme) -> None:
    """Over the tier's marks: the fullest device in numbers, because marks and budget may be too close to tell apart."""
    tasks = [t for t in closest_tasks(run).values() if t.tier == facts.name and t.measured_peak_bytes is not None]
    if tasks:
        fullest = max(tasks, key=lambda t: (t.measured_peak_bytes or 0) / t.budget_bytes)
        text = f"{(fullest.measured_peak_bytes or 0) / MIB:.2f} of {fullest.budget_bytes / MIB:.2f}"
        shade = theme.alarm if (fullest.measured_peak_bytes or 0) > fullest.budget_bytes else theme.ink
        highest = max(max(t.budget_bytes, t.measured_peak_bytes or 0) for t in tasks)
    elif facts.budget_bytes is not None:
        text, highest, shade = f"budget {facts.budget_bytes / MIB:.1f}", facts.budget_bytes, theme.muted
    else:
        return
    axes.annotate(
        text, (column, highest / MIB), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=7.5,
        color=shade,
    )  # fmt: skip


def _draw_marks(
    axes: Axes, placed: list[tuple[float, ClientRecord]], *, floor: float, size: float, theme: Theme, colour: str
) -> None:
    """A ring for what was planned, a dot for what was measured, a cross for a task that never ran."""
    planned = [(x, t.planned_peak_bytes / MIB) for x, t in placed if t.planned_peak_bytes is not None]
    measured = [(x, t.measured_peak_bytes / MIB, t) for x, t in placed if t.measured_peak_bytes is not None]
    kept = [(x, y) for x, y, t in measured if y * MIB <= t.budget_bytes]
    over = [(x, y) for x, y, t in measured if y * MIB > t.budget_bytes]
    failed = [(x, floor) for x, t in placed if t.measured_peak_bytes is None]
    ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": theme.muted, "markeredgewidth": 1.0}
    for points, marker, scale, look in (
        (planned, "o", 1.75, ring),
        (kept, "o", 1.0, {"color": colour, "markeredgewidth": 0.0}),
        (over, "X", 1.6, {"color": theme.alarm, "markeredgewidth": 0.0}),
        (failed, "x", 1.0, {"color": theme.alarm, "markeredgewidth": 1.4}),
    ):
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker=marker, markersize=size * scale, linestyle="", zorder=4, **look)


def _legend(theme: Theme) -> list[Line2D]:
    return [
        Line2D([], [], color=theme.ink, linewidth=1.8, label="budget"),
        Line2D([], [], marker="o", linestyle="", markersize=9, markerfacecolor="none", markeredgecolor=theme.muted,
               label="planned peak"),
        Line2D([], [], marker="o", linestyle="", markersize=5, color=theme.series[0], label="measured peak"),
        Line2D([], [], marker="s", linestyle="", markersize=3.6, markerfacecolor="none", markeredgecolor=theme.muted,
               label="never took part"),
        Line2D([], [], marker="x", linestyle="", markersize=6, color=theme.alarm, label="failed or over budget"),
    ]  # fmt: skip


def caption(runs: Runs) -> str:
    """How to read the figure, with the largest difference between planned and measured."""
    text = (
        "One mark per device, devices sorted into budget tiers from small to large. A dot inside its ring means that "
        "the measured peak is what the plan promised; both at or below the bar means that the step kept its budget. Of "
        "several tasks of a device the one closest to its budget is shown; the numbers are the fullest device's "
        "measured peak and its budget in MiB. Measured is the allocator's count over one real step; parameters, "
        "optimizer state and batch are included everywhere."
    )
    gaps = [gap for run in runs.values() if (gap := largest_gap(run))]
    if not gaps:
        return text
    worst = max(gaps, key=lambda gap: gap.gap_ratio)
    return f"{text} Largest difference between ring and dot: {mib(worst.gap_bytes, 2)} ({percent(worst.gap_ratio, 2)})."
