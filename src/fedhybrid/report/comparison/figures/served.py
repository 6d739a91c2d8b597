"""Accuracy for those whom a model serves worst: a panel for each cell, a row for each variant."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fedhybrid.report.comparison.figures.panels import Look, Scene, looks, name_rows, panels
from fedhybrid.report.comparison.statistics import Estimate
from fedhybrid.report.figures import Theme
from fedhybrid.report.figures.style import hide_spines

__all__ = ["CAPTION", "draw"]

CAPTION = (
    "Filled: the final model\u2019s accuracy on data like that of the budget tier that it serves worst. Hollow: on "
    "data like that of the tenth of devices that it serves worst. The thin stroke is the accuracy on the whole test "
    "set. Means over seeds; the line through a filled mark goes from the lowest seed to the highest."
)
_ROW_IN = 0.25


def draw(scenes: Sequence[Scene], theme: Theme) -> Figure | None:
    """None where no summary tells accuracies by tier."""
    shown = [scene for scene in scenes if any(each.worst_tier for each in scene.result.variants.values())]
    if not shown:
        return None
    look = looks(scenes, theme)
    figure, axes = panels(shown, [0.6 + _ROW_IN * len(scene.result.variants) for scene in shown])
    for each, scene in zip(axes, shown, strict=True):
        _draw_cell(each, scene, look, theme)
    return figure


def _draw_cell(axes: Axes, scene: Scene, look: dict[str, Look], theme: Theme) -> None:
    variants = scene.result.variants
    name_rows(axes, list(variants))
    lowest = 1.0
    for row, (label, each) in enumerate(variants.items()):
        axes.axhline(row, color=theme.track, linewidth=6, zorder=0)
        colour, mark = look[label].colour, look[label].mark
        axes.plot([each.final.mean] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=1.1, zorder=2)
        lowest = min([lowest, each.final.mean, *_lowest(each.worst_tier), *_lowest(each.worst_tenth)])
        if each.worst_tenth:
            axes.plot(
                [each.worst_tenth.mean], [row], mark, markersize=5, markerfacecolor=theme.paper,
                markeredgecolor=colour, zorder=3, clip_on=False,
            )  # fmt: skip
        if each.worst_tier:
            ends = [min(each.worst_tier.values), max(each.worst_tier.values)]
            axes.plot(ends, [row, row], color=colour, linewidth=1.6, zorder=3)
            axes.plot([each.worst_tier.mean], [row], mark, color=colour, markersize=5, zorder=4, clip_on=False)
    axes.set_xlim(max(0.0, lowest - 0.05) if lowest > 0.3 else 0.0, 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", zorder=1)
    hide_spines(axes, "left", "bottom")


def _lowest(found: Estimate | None) -> tuple[float, ...]:
    return found.values if found else ()
