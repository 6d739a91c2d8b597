"""How all figures look: two themes, one palette, and small helpers for labels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedhybrid.report.load import Runs

__all__ = [
    "DARK",
    "DPI",
    "LIGHT",
    "WIDTH_IN",
    "Theme",
    "colours",
    "hide_spines",
    "new_figure",
    "spread",
    "themed",
]

WIDTH_IN = 7.6
DPI = 160


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one appearance. `series` are safe for colour-blind readers (after Okabe and Ito, 2008)."""

    name: str
    paper: str
    ink: str
    muted: str
    faint: str
    track: str
    alarm: str
    series: tuple[str, ...]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1b1e23",
    muted="#5f6670",
    faint="#e3e6ea",
    track="#eef0f3",
    alarm="#b3001b",
    series=("#0072b2", "#d55e00", "#009e73", "#a0508c", "#b8860b", "#5a6472"),
)
DARK = Theme(
    name="dark",
    paper="#16181c",
    ink="#e8eaed",
    muted="#a2a9b3",
    faint="#30343b",
    track="#23272d",
    alarm="#ff6b7d",
    series=("#56b4e9", "#f0883e", "#2dc79a", "#d68fc4", "#e6b93f", "#9aa5b4"),
)


def themed(theme: Theme) -> AbstractContextManager[None]:
    """What is drawn and saved inside looks like `theme`; matplotlib's settings are as before afterwards."""
    looks: Any = {  # the type that matplotlib wants differs between its versions
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.color": theme.ink,
        "text.parse_math": False,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "grid.color": theme.faint,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.labelcolor": theme.muted,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
    }
    return matplotlib.rc_context(looks)


def new_figure(height_in: float) -> Figure:
    """An empty figure of the page's width that draws with Agg and belongs to no window."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colours(runs: Runs, theme: Theme) -> dict[str, str]:
    """Each run's colour, the same in every figure."""
    return {label: theme.series[i % len(theme.series)] for i, label in enumerate(runs)}


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved as little as needed so that neighbours are at least `gap` apart; the order stays.

    >>> spread([0.5, 0.5, 3.0], 1.0)
    [0.0, 1.0, 3.0]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    clusters: list[list[float]] = []  # [sum of wanted first positions, members]: neighbours that touch move as one
    for rank, i in enumerate(order):
        clusters.append([positions[i] - rank * gap, 1.0])
        while len(clusters) > 1 and clusters[-2][0] / clusters[-2][1] > clusters[-1][0] / clusters[-1][1]:
            total, members = clusters.pop()
            clusters[-1][0] += total
            clusters[-1][1] += members
    placed = [0.0] * len(positions)
    rank = 0
    for total, members in clusters:
        for _ in range(int(members)):
            placed[order[rank]] = total / members + rank * gap
            rank += 1
    return placed


def hide_spines(axes: Axes, *sides: str) -> None:
    """Removes the frame's lines on these sides."""
    axes.spines[list(sides)].set_visible(False)
