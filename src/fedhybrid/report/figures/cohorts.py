"""Which tiers each round's cohort came from: rounds from left to right, tiers from top to bottom."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedhybrid.records import COMPLETED, FloatArray
from fedhybrid.report.facts import tier_order
from fedhybrid.report.figures.style import Theme, colours, hide_spines, new_figure
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tasks import is_asynchronous, training_tasks
from fedhybrid.report.text import shorten

__all__ = ["caption", "draw"]

_CELLS_WITH_NUMBERS = 26  # rounds beyond which a number no longer fits into its cell


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no run has given out a task."""
    shown = {label: run for label, run in runs.items() if training_tasks(run)}
    if not shown:
        return None
    tiers = tier_order(runs)
    first = min(task.round for run in shown.values() for task in training_tasks(run))
    counts = {label: _counts(run, tiers, first) for label, run in shown.items()}
    last = first + max(table.shape[1] for table in counts.values()) - 1
    most = max(1.0, *(float(table.max()) for table in counts.values()))
    figure = new_figure(0.55 + len(shown) * (0.45 + 0.24 * len(tiers)))
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, table) in zip(panels, counts.items(), strict=True):
        shade = LinearSegmentedColormap.from_list("tasks", [theme.track, colours(runs, theme)[label]])
        axes.imshow(
            table, aspect="auto", cmap=shade, vmin=0, vmax=most, interpolation="nearest",
            extent=(first - 0.5, first + table.shape[1] - 0.5, len(tiers) - 0.5, -0.5),
        )  # fmt: skip
        axes.set_xlim(first - 0.5, last + 0.5)
        if last - first < _CELLS_WITH_NUMBERS:
            _write_numbers(axes, table, first, most, theme)
        axes.set_yticks(range(len(tiers)), [shorten(tier, 16) for tier in tiers])
        axes.set_yticks(np.arange(len(tiers) - 1) + 0.5, minor=True)
        axes.grid(axis="y", which="minor", color=theme.paper, linewidth=2)
        axes.tick_params(which="both", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        hide_spines(axes, "left", "bottom")
        axes.set_title(shorten(label, 40), color=colours(runs, theme)[label], fontweight="bold")
    merged = [is_asynchronous(run) for run in shown.values()]
    panels[-1].set_xlabel("aggregation" if all(merged) else "round or aggregation" if any(merged) else "round")
    return figure


def _counts(run: RunRecords, tiers: list[str], first: int) -> FloatArray:
    """Tasks completed, by tier (rows) and round (columns); the last column is the run's last round."""
    last = max([task.round for task in training_tasks(run)] + [record.round for record in run.rounds])
    table = np.zeros((len(tiers), last - first + 1))
    for task in training_tasks(run):
        if task.outcome == COMPLETED:
            table[tiers.index(task.tier), task.round - first] += 1
    return table


def _write_numbers(axes: Axes, table: FloatArray, first: int, most: float, theme: Theme) -> None:
    for (row, column), count in np.ndenumerate(table):
        if count:
            strong = count / most > 0.7
            axes.annotate(
                f"{int(count)}", (first + column, row), ha="center", va="center", fontsize=7.5,
                color=theme.paper if strong else theme.ink,
            )  # fmt: skip


def caption(runs: Runs) -> str:
    """How to read the figure."""
    unit = "round"
    if any(is_asynchronous(run) for run in runs.values()):
        unit = "round or, in asynchronous runs, before each aggregation"
    return (
        f"Tasks completed in each {unit} (the first is number 0), by budget tier (smallest budget on top); the "
        "stronger the colour, the more. A row without colour is a tier that never contributes. Uneven rows show "
        "whom the selection prefers."
    )
