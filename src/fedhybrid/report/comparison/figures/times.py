"""Virtual time to each target: a panel for each cell, a row for each variant, a mark for each target."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedhybrid.report.comparison.figures.panels import Look, Scene, looks, mark_times, name_rows, panels
from fedhybrid.report.figures import Theme
from fedhybrid.report.figures.style import hide_spines
from fedhybrid.report.text import percent, time_scale

__all__ = ["CAPTION", "draw"]

CAPTION = (
    "Virtual time to each target accuracy, mean over the seeds that got there; further left is sooner, and time is "
    "logarithmic. A number beside a mark is the target; in brackets, how many seeds got there where not all did. "
    "In the right margin the lowest target that no seed reached."
)
_ROW_IN = 0.34


def draw(scenes: Sequence[Scene], theme: Theme) -> Figure | None:
    """None where no variant reached any target."""
    shown = [
        scene
        for scene in scenes
        if any(found.mean_s for each in scene.result.variants.values() for found in each.targets)
    ]
    if not shown:
        return None
    look = looks(scenes, theme)
    figure, axes = panels(shown, [0.9 + _ROW_IN * len(scene.result.variants) for scene in shown])
    for each, scene in zip(axes, shown, strict=True):
        _draw_cell(each, scene, look, theme)
    return figure


def _draw_cell(axes: Axes, scene: Scene, look: dict[str, Look], theme: Theme) -> None:
    variants = scene.result.variants
    name_rows(axes, list(variants))
    times_s = [found.mean_s for each in variants.values() for found in each.targets if found.mean_s]
    unit_s, unit = time_scale(max(times_s))
    axes.set_xscale("log")
    axes.set_xlim(min(times_s) / unit_s / 1.3, max(times_s) / unit_s * 1.3)
    for row, (label, each) in enumerate(variants.items()):
        axes.axhline(row, color=theme.track, linewidth=6, zorder=0)
        places = [found.mean_s / unit_s for found in each.targets if found.mean_s]
        axes.plot(places, [row] * len(places), color=look[label].colour, linewidth=1.2, zorder=2)
        axes.plot(places, [row] * len(places), look[label].mark, color=look[label].colour, markersize=5, zorder=3)
        for place, found in enumerate(each.targets):
            if found.mean_s and found.target is not None:
                count = "" if found.reached == found.runs else f" ({found.reached} of {found.runs})"
                _write(
                    axes, found.mean_s / unit_s, row, f"{100 * found.target:g}{count}", theme.ink, below=place % 2 == 1
                )
        never = [found.target for found in each.targets if found.mean_s is None and found.target]
        if never:
            axes.annotate(
                f"never {percent(min(never), 0)}",
                (1.0, row),
                xytext=(4, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                fontsize=7,
                color=theme.muted,
                ha="left",
                annotation_clip=False,
                va="center",
            )
    mark_times(axes, unit, narrow=True)
    axes.tick_params(axis="x", which="both", length=0, labelsize=7.5)
    axes.grid(axis="x", zorder=1)
    hide_spines(axes, "left", "bottom")


def _write(axes: Axes, time: float, row: int, text: str, colour: str, *, below: bool) -> None:
    """Every other target stands below its mark, because neighbours are often close."""
    axes.annotate(
        text,
        (time, row),
        xytext=(0, -4 if below else 4),
        textcoords="offset points",
        fontsize=6.5,
        color=colour,
        ha="center",
        va="top" if below else "bottom",
    )
