"""Participation: a panel for each cell, a row for each variant, a column for each budget tier."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedhybrid.report.comparison.figures.panels import Scene, name_rows, panels
from fedhybrid.report.figures import Theme
from fedhybrid.report.figures.style import hide_spines
from fedhybrid.report.text import shorten

__all__ = ["CAPTION", "draw"]

CAPTION = (
    "Of each budget tier (the smallest budget at the left) the share of devices that completed at least one task, mean "
    "over seeds; below it in small, how many tasks they completed."
)
_ROW_IN = 0.34


def draw(scenes: Sequence[Scene], theme: Theme) -> Figure | None:
    """None where no run is finished."""
    shown = [scene for scene in scenes if scene.result.variants and scene.result.tiers]
    if not shown:
        return None
    figure, axes = panels(shown, [0.6 + _ROW_IN * len(scene.result.variants) for scene in shown])
    for each, scene in zip(axes, shown, strict=True):
        _draw_cell(each, scene, theme)
    return figure


def _draw_cell(axes: Axes, scene: Scene, theme: Theme) -> None:
    variants, tiers = scene.result.variants, scene.result.tiers
    name_rows(axes, list(variants))
    axes.set_xticks(range(len(tiers)), [shorten(tier, max(6, 40 // len(tiers))) for tier in tiers])
    axes.set_xlim(-0.5, len(tiers) - 0.5)
    axes.tick_params(axis="x", length=0)
    hide_spines(axes, "left", "bottom")
    for row, each in enumerate(variants.values()):
        for column, tier in enumerate(tiers):
            found = each.tiers.get(tier)
            if found is None or not found.clients:
                continue
            share = found.reached / found.clients
            box = Rectangle((column - 0.47, row - 0.44), 0.94, 0.88, facecolor=_mixed(theme, share), linewidth=0)
            axes.add_patch(box)
            ink = theme.paper if share > 0.6 else theme.ink
            axes.text(column, row - 0.1, f"{100 * share:.0f}\u00a0%", fontsize=7.5, color=ink, ha="center", va="center")
            axes.text(
                column,
                row + 0.26,
                f"{found.tasks:,.{0 if found.tasks >= 10 else 1}f}",
                fontsize=5.5,
                color=ink,
                ha="center",
                va="center",
            )


def _mixed(theme: Theme, share: float) -> tuple[float, float, float]:
    """From the page's track to the first colour of the palette."""
    pairs = zip(to_rgb(theme.track), to_rgb(theme.series[0]), strict=True)
    red, green, blue = (low + share * (high - low) for low, high in pairs)
    return red, green, blue
