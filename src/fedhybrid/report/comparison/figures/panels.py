"""What the figures of a comparison share: one panel a cell, and how each variant looks in all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedhybrid.report.comparison.load import Cell
from fedhybrid.report.comparison.results import CellResult
from fedhybrid.report.figures import Theme
from fedhybrid.report.figures.style import new_figure
from fedhybrid.report.text import shorten

__all__ = ["Look", "Scene", "legend", "looks", "mark_times", "name_rows", "panels", "titles"]

_DASHES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, ()), (0, (4, 1.6)), (0, (1, 1.2)), (0, (6, 1.4, 1, 1.4)))
_MARKS = ("o", "s", "^", "D")
_COLUMNS = 2
_TITLE_CHARACTERS = 68  # of all panels in a row, beside the names of their rows
_NARROW_SPAN = 40


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A cell with its records and its numbers."""

    cell: Cell
    result: CellResult


@dataclass(frozen=True, kw_only=True)
class Look:
    """A variant's colour, and the dash and mark that tell it from others of that colour."""

    colour: str
    dash: tuple[float, tuple[float, ...]]
    mark: str


def looks(scenes: Sequence[Scene], theme: Theme) -> dict[str, Look]:
    """The same in every figure: the palette goes round, then dash and mark change."""
    labels = list(dict.fromkeys(label for scene in scenes for label in scene.cell.runs))
    count = len(theme.series)
    return {
        label: Look(
            colour=theme.series[i % count],
            dash=_DASHES[i // count % len(_DASHES)],
            mark=_MARKS[i // count % len(_MARKS)],
        )
        for i, label in enumerate(labels)
    }


def panels(scenes: Sequence[Scene], heights_in: Sequence[float], *, above_in: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with a titled panel for each cell, two in a row; rows are as high as their highest panel asks."""
    columns = min(_COLUMNS, len(scenes))
    rows = [max(heights_in[i : i + columns]) for i in range(0, len(scenes), columns)]
    figure = new_figure(sum(rows) + above_in)
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=rows)
    axes: list[Axes] = list(grid.flat)
    for unused in axes[len(scenes) :]:
        unused.set_visible(False)
    for each, title in zip(axes, titles([scene.cell.label for scene in scenes]), strict=False):
        each.set_title(textwrap.fill(title, _TITLE_CHARACTERS // columns), fontweight="bold", fontsize=8.5)
    return figure, axes[: len(scenes)]


def titles(labels: Sequence[str]) -> list[str]:
    """Cells' labels without the words that all of them have.

    >>> titles(["digits, alpha 0.1, weak", "digits, alpha 1.0, weak"])
    ['alpha 0.1', 'alpha 1.0']
    >>> titles(["digits"])
    ['digits']
    """
    words = [label.split(", ") for label in labels]
    common = set.intersection(*(set(each) for each in words)) if len(words) > 1 else set()
    return [", ".join(word for word in each if word not in common) or ", ".join(each) for each in words]


def legend(figure: Figure, looks: dict[str, Look], shown: Sequence[str]) -> None:
    """Names above the panels."""
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.dash, linewidth=2, marker=look.mark, markersize=4, label=label)
        for label, look in looks.items()
        if label in shown
    ]
    names = [shorten(str(handle.get_label()), 28) for handle in handles]
    figure.legend(handles, names, loc="outside upper left", ncols=3, handlelength=2.6, columnspacing=1.6)


def mark_times(axes: Axes, unit: str, *, narrow: bool = False) -> None:
    """Labels a logarithmic axis of times; a narrow one that spans much has room for powers of ten only."""
    low, high = axes.get_xlim()
    subs: tuple[float, ...] = (1,) if narrow and high > _NARROW_SPAN * low else (1, 2, 5)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"virtual time ({unit})")


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """One row for each label, from the top."""
    axes.set_yticks(range(len(labels)), [shorten(label, 22) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, pad=6)
