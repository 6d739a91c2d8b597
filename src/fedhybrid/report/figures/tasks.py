"""Asynchronous runs: every task from its start to its end, and the moments when updates were combined."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedhybrid.records import ClientRecord
from fedhybrid.report.facts import clock_words, tier_order
from fedhybrid.report.figures.outcomes import Look, legend, looks
from fedhybrid.report.figures.style import Theme, hide_spines, new_figure
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tasks import stale_runs, training_tasks
from fedhybrid.report.text import shorten, time_scale

__all__ = ["caption", "draw", "slots"]

_SHOWN_TASKS = 200
_MOST_ROWS = 40  # devices that get a row each; more share rows
_FEW_MERGES = 60  # more lines than these are drawn fainter, so that the bars stay visible
_LEGEND_COLUMNS = 6


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no task ended after its model had been replaced."""
    shown = {label: _first(run) for label, run in stale_runs(runs).items()}
    if not shown:
        return None
    tiers = tier_order(runs)
    rows = {label: _rows(tasks, tiers) for label, tasks in shown.items()}
    look = looks([task for tasks in shown.values() for task in tasks], theme)
    heights = [0.55 + 0.115 * max(4, 1 + max(places)) for places in rows.values()]
    figure = new_figure(0.3 + 0.2 * -(-len(look) // _LEGEND_COLUMNS) + sum(heights))
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (label, tasks) in zip(panels, shown.items(), strict=True):
        _draw_tasks(axes, tasks, rows[label], look, theme)
        _draw_merges(axes, runs[label], theme)
        axes.set_xlabel(f"{clock_words({label: runs[label]})} ({axes.get_xlabel()})")
        axes.set_title(f"{shorten(label, 40)}: {_which(tasks, runs[label])}")
    figure.legend(
        handles=legend(look, theme), loc="outside upper left", ncols=_LEGEND_COLUMNS, columnspacing=1.2,
        handlelength=1.2, handletextpad=0.5,
    )  # fmt: skip
    return figure


def _start_s(task: ClientRecord) -> float:
    return task.at_s - task.virtual_time_s


def _first(run: RunRecords) -> list[ClientRecord]:
    """The first tasks by their start."""
    return sorted(training_tasks(run), key=lambda task: (_start_s(task), task.at_s, task.client))[:_SHOWN_TASKS]


def _rows(tasks: Sequence[ClientRecord], tiers: list[str]) -> list[int]:
    """Each task's row: a row for each device, by tier, or where these are too many for each slot."""
    devices = sorted({(tiers.index(task.tier), task.client) for task in tasks})
    if len(devices) > _MOST_ROWS:
        return slots([(_start_s(task), task.at_s) for task in tasks])
    row = {client: place for place, (_, client) in enumerate(devices)}
    return [row[task.client] for task in tasks]


def slots(spans: Sequence[tuple[float, float]]) -> list[int]:
    """For spans by ascending start, the lowest rows in which none covers another.

    >>> slots([(0.0, 2.0), (0.0, 1.0), (1.0, 3.0), (1.5, 2.0)])
    [0, 1, 1, 2]
    """
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    placed: list[int] = []
    for start_s, end_s in spans:
        while busy and busy[0][0] <= start_s:
            heapq.heappush(free, heapq.heappop(busy)[1])
        row = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end_s, row))
        placed.append(row)
    return placed


def _draw_tasks(
    axes: Axes, tasks: Sequence[ClientRecord], rows: Sequence[int], look: dict[str, Look], theme: Theme
) -> None:
    end_s = max(task.at_s for task in tasks)
    unit_s, unit = time_scale(end_s)
    for kind, (colour, hatch) in look.items():
        mine = [(row, task) for row, task in zip(rows, tasks, strict=True) if task.outcome == kind]
        if mine:
            axes.barh(
                [row for row, _ in mine], [task.virtual_time_s / unit_s for _, task in mine],
                left=[_start_s(task) / unit_s for _, task in mine], height=0.72, facecolor=colour, hatch=hatch,
                edgecolor=theme.paper, linewidth=0.5, zorder=2,
            )  # fmt: skip
    axes.set_xlim(0, end_s / unit_s or 1.0)
    axes.set_ylim(max(rows) + 0.5, -0.5)
    axes.set_xlabel(unit)
    axes.set_yticks(*_names(tasks, rows))
    axes.tick_params(length=0)
    hide_spines(axes, "left")


def _draw_merges(axes: Axes, run: RunRecords, theme: Theme) -> None:
    """Over the bars, because a bar that a line crosses is what makes an update stale."""
    last_s = max(task.at_s for task in _first(run))
    unit_s, _ = time_scale(last_s)
    merges = [r.virtual_time_s for r in run.rounds if r.staleness_mean is not None and r.virtual_time_s <= last_s]
    low, high = axes.get_ylim()
    axes.vlines(
        [at_s / unit_s for at_s in merges], high, low, color=theme.ink, linewidth=0.5, zorder=3,
        alpha=0.5 if len(merges) <= _FEW_MERGES else 0.22,
    )  # fmt: skip


def _names(tasks: Sequence[ClientRecord], rows: Sequence[int]) -> tuple[list[float], list[str]]:
    """A tier's name in the middle of its devices' rows; nothing where rows are shared."""
    tier_of: dict[int, set[tuple[str, int]]] = {}
    for row, task in zip(rows, tasks, strict=True):
        tier_of.setdefault(row, set()).add((task.tier, task.client))
    if any(len(owners) > 1 for owners in tier_of.values()):
        return [], []
    middles: dict[str, list[int]] = {}
    for row, owners in sorted(tier_of.items()):
        middles.setdefault(next(iter(owners))[0], []).append(row)
    return [sum(places) / len(places) for places in middles.values()], [shorten(tier, 16) for tier in middles]


def _which(tasks: Sequence[ClientRecord], run: RunRecords) -> str:
    whole = len(training_tasks(run))
    many = f"the first {len(tasks)} of {whole:,} tasks" if whole > len(tasks) else f"all {whole} tasks"
    return f"{many}, {len({task.client for task in tasks})} devices"


def caption(runs: Runs) -> str:
    """How to read the figure."""
    shared = any(len({task.client for task in _first(run)}) > _MOST_ROWS for run in stale_runs(runs).values())
    row = "Devices take turns in a row" if shared else "Each row is a device, sorted into budget tiers"
    return (
        f"{row}; a bar is a task from its start to its end. A thin line is a moment when the server combined updates: "
        "as many lines cross a bar, so many times its model was replaced before it ended. Nobody waits for slow "
        "devices; a gap between two bars is a device that was not asked."
    )
