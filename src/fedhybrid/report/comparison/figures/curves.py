"""Test accuracy over virtual time: a panel for each cell, a line for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fedhybrid.report.comparison.figures.panels import Look, Scene, legend, looks, mark_times, panels
from fedhybrid.report.facts import accuracy_curve
from fedhybrid.report.figures import Theme
from fedhybrid.report.load import RunRecords
from fedhybrid.report.text import time_scale

__all__ = ["CAPTION", "Mean", "draw", "mean_curve"]

CAPTION = (
    "Each line is one variant, those apart left out: test by test, accuracy and virtual time are means over seeds, and "
    "the band goes from the lowest seed to the highest. Higher is better, further left is sooner. Dotted lines are the "
    "targets that were fixed before the runs. Time is virtual: what training would take on the simulated devices, "
    "planning overhead included."
)
_SPAN = 5.0  # beyond so many times the shortest run, short runs would be a stroke at the left: time is then logarithmic
_ROW_IN = 2.6


class Mean(NamedTuple):
    """One test, over seeds."""

    time_s: float
    accuracy: float
    low: float
    high: float


def mean_curve(runs: Mapping[int, RunRecords]) -> list[Mean]:
    """Mean over seeds of each test in turn, as far as all seeds have it."""
    tests = zip(*(accuracy_curve(run) for run in runs.values()), strict=False)
    return [
        Mean(
            time_s=fmean(point.virtual_time_s for point in points),
            accuracy=fmean(point.accuracy for point in points),
            low=min(point.accuracy for point in points),
            high=max(point.accuracy for point in points),
        )
        for points in tests
    ]


def draw(scenes: Sequence[Scene], theme: Theme) -> Figure | None:
    """None where no run is finished that gets a line."""
    shown = [scene for scene in scenes if _drawn(scene)]
    if not shown:
        return None
    look = looks(scenes, theme)
    names = [label for label in look if any(label in _drawn(scene) for scene in shown)]
    figure, axes = panels(shown, [_ROW_IN] * len(shown), above_in=0.15 + 0.19 * -(-len(names) // 3))
    for each, scene in zip(axes, shown, strict=True):
        _draw_cell(each, scene, look, theme)
    legend(figure, look, names)
    return figure


def _drawn(scene: Scene) -> dict[str, Mapping[int, RunRecords]]:
    """Lines of variants apart would hide those that they are parts of."""
    return {label: runs for label, runs in scene.cell.finished.items() if label not in scene.cell.apart}


def _draw_cell(axes: Axes, scene: Scene, look: Mapping[str, Look], theme: Theme) -> None:
    curves = {label: mean_curve(runs) for label, runs in _drawn(scene).items()}
    ends_s = [curve[-1].time_s for curve in curves.values() if curve]
    logarithmic = max(ends_s) > _SPAN * min(ends_s) > 0
    unit_s, unit = time_scale(max(ends_s))
    for label, curve in curves.items():
        times = [test.time_s / unit_s for test in curve]
        style = look[label]
        low, high = [test.low for test in curve], [test.high for test in curve]
        axes.fill_between(times, low, high, color=style.colour, alpha=0.14, linewidth=0)
        accuracies = [test.accuracy for test in curve]
        axes.plot(times, accuracies, color=style.colour, linestyle=style.dash, linewidth=1.7, zorder=3)
        axes.plot(times[-1:], accuracies[-1:], color=style.colour, marker=style.mark, markersize=4.5, zorder=4)
    for target in scene.cell.targets:
        axes.axhline(target, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
    if logarithmic:
        axes.set_xscale("log")
        mark_times(axes, unit)
    else:
        axes.set_xlabel(f"virtual time ({unit})")
