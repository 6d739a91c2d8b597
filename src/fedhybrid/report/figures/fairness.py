"""Whom training reached beside whom the final model serves: by budget tier, and for the tenth that it serves worst."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedhybrid.report.facts import tier_order, tiers_of
from fedhybrid.report.figures.style import Theme, colours, hide_spines, new_figure
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.text import percent, shorten

__all__ = ["caption", "draw"]

_LANE_IN = 0.11  # height that one run's dot takes in a row
_WORST = "worst tenth"


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no summary tells accuracies by tier."""
    shown = _told(runs)
    if not shown:
        return None
    tiers = [tier for tier in tier_order(shown) if any(tier in tiers_of(run) for run in shown.values())]
    rows = [*tiers, _WORST]
    row_in = max(0.3, 0.12 + _LANE_IN * len(shown))
    figure = new_figure(0.75 + (0.28 if len(shown) > 1 else 0.0) + row_in * len(rows))
    reached, served = figure.subplots(1, 2, sharey=True, width_ratios=[2, 3], gridspec_kw={"wspace": 0.08})
    colour = colours(runs, theme)
    for lane, (label, run) in enumerate(shown.items()):
        shift = (lane - (len(shown) - 1) / 2) * _LANE_IN / row_in
        _draw_run(reached, _reached(run, tiers), shift, colour[label])
        _draw_run(served, _served(run, tiers), shift, colour[label])
        if run.summary:
            served.axvline(run.summary.final_accuracy, color=colour[label], linewidth=0.9, linestyle=(0, (1, 2)))
    lowest = min((value for run in shown.values() for _, value in _served(run, tiers)), default=0.0)
    left = 0.1 * int(10 * max(0.0, lowest - 0.05)) if lowest > 0.3 else 0.0  # as the accuracy figure begins
    for axes, title in ((reached, "devices that completed a task"), (served, "accuracy on data like their own")):
        axes.set_title(title, fontsize=9, color=theme.muted)
        axes.set_xlim(0.0 if axes is reached else left, 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=2 if axes is reached else 5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.4g}\u00a0%"))
        axes.grid(axis="x", zorder=1)
        for row in range(len(tiers)):
            axes.axhspan(row - 0.36, row + 0.36, color=theme.track, linewidth=0, zorder=0)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", pad=8)
        hide_spines(axes, "left", "bottom")
    reached.set_yticks(range(len(rows)), [shorten(row, 16) for row in rows])
    reached.set_ylim(len(rows) - 0.5, -0.5)
    if len(shown) > 1:
        names = [
            Line2D([], [], marker="o", linestyle="", markersize=6, color=colour[label], label=shorten(label, 24))
            for label in shown
        ]
        figure.legend(handles=names, loc="outside upper left", ncols=min(3, len(names)), handletextpad=0.4)
    return figure


def _told(runs: Runs) -> dict[str, RunRecords]:
    return {label: run for label, run in runs.items() if run.summary and run.summary.accuracy_by_tier}


def _reached(run: RunRecords, tiers: list[str]) -> list[tuple[int, float]]:
    """(row, share of the tier's devices)."""
    facts = tiers_of(run)
    return [
        (row, facts[tier].reached / clients)
        for row, tier in enumerate(tiers)
        if tier in facts and (clients := facts[tier].clients)
    ]


def _served(run: RunRecords, tiers: list[str]) -> list[tuple[int, float]]:
    """(row, accuracy); the last row is the worst tenth's."""
    facts = tiers_of(run)
    found = [
        (row, accuracy)
        for row, tier in enumerate(tiers)
        if tier in facts and (accuracy := facts[tier].accuracy) is not None
    ]
    if run.summary and run.summary.worst_tenth_accuracy is not None:
        found.append((len(tiers), run.summary.worst_tenth_accuracy))
    return found


def _draw_run(axes: Axes, places: list[tuple[int, float]], shift: float, colour: str) -> None:
    for row, value in places:
        axes.plot([value], [row + shift], marker="o", markersize=6, color=colour, zorder=3, clip_on=False)


def caption(runs: Runs) -> str:
    """How to read the figure, with the distance between the best and the worst served tier of each run."""
    text = (
        "Left: of each budget tier (smallest budget on top) the share of devices that completed a task. Right: the "
        "final model's accuracy on test data like each device's own, as a mean over the tier's devices; at the bottom "
        "over the tenth of all devices that it serves worst. Dotted is the accuracy on the whole test set."
    )
    for label, run in _told(runs).items():
        known = sorted((a, tier) for tier, fact in tiers_of(run).items() if (a := fact.accuracy) is not None)
        if len(known) > 1:
            (low, worst), (high, best) = known[0], known[-1]
            text += f" {label} serves {best} with {percent(high)} and {worst} with {percent(low)}."
    return text
