"""Asynchronous runs: how old the models were that updates began with."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedhybrid.records import COMPLETED, IntArray
from fedhybrid.report.facts import tier_order
from fedhybrid.report.figures.style import Theme, colours, hide_spines, new_figure
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tasks import stale_runs, training_tasks
from fedhybrid.report.text import shorten

__all__ = ["caption", "draw"]

_BARS = 40  # beyond, a bar stands for several numbers of aggregations


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no update was stale."""
    shown = {label: ages for label, run in stale_runs(runs).items() if (ages := _ages(run)).any()}
    if not shown:
        return None
    figure = new_figure(0.5 + 1.45 * len(shown))
    panels = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    longest = max(int(ages.max()) for ages in shown.values())
    width = longest // _BARS + 1
    for axes, (label, ages) in zip(panels, shown.items(), strict=True):
        _draw_run(axes, ages, width, colours(runs, theme)[label], theme)
        axes.set_xlim(-0.75, max(longest, 4) + 0.75)
        axes.set_title(shorten(label, 40), color=colours(runs, theme)[label], fontweight="bold")
    panels[0].set_ylim(0, 1.2 * panels[0].get_ylim()[1])  # of all panels: room for the mean's label above the bars
    panels[-1].set_xlabel("aggregations between a task's start and its update's arrival")
    return figure


def _ages(run: RunRecords) -> IntArray:
    ages = [task.staleness for task in training_tasks(run) if task.outcome == COMPLETED]
    return np.array(ages, dtype=np.int64)


def _draw_run(axes: Axes, ages: IntArray, width: int, colour: str, theme: Theme) -> None:
    """Shares of updates; the first bar is 0 to `width - 1` aggregations."""
    counts = np.bincount(ages // width)
    lefts = width * np.arange(len(counts)) - 0.5
    axes.bar(lefts, counts / len(ages), width=0.86 * width, align="edge", color=colour, zorder=2)
    mean = float(ages.mean())
    axes.axvline(mean, color=theme.ink, linewidth=1.0, linestyle=(0, (1, 2)), zorder=3)
    axes.annotate(
        f"mean {mean:.1f}", (mean, 1.0), xycoords=axes.get_xaxis_transform(), xytext=(4, -1),
        textcoords="offset points", fontsize=8, va="top", color=theme.ink, zorder=4,
    )  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    axes.tick_params(length=0)
    hide_spines(axes, "left")


def caption(runs: Runs) -> str:
    """How to read the figure, with each tier's mean: slow devices bring the oldest updates."""
    text = (
        "Of all updates the share that came so many aggregations after their task began; 0 is an update of the newest "
        "model, and the dotted line is the mean."
    )
    for label, run in stale_runs(runs).items():
        means = []
        for tier in tier_order({label: run}):
            ages = [t.staleness for t in training_tasks(run) if t.tier == tier and t.outcome == COMPLETED]
            if ages:
                means.append(f"{tier} {sum(ages) / len(ages):.1f}")
        if len(means) > 1:
            text += f" Means by tier, {label}: {', '.join(means)}."
    return text
