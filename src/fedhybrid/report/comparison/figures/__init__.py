"""The figures of a comparison, in the order of the page. A new one is a file with `draw`, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from fedhybrid.report.comparison.figures import curves, served, tiers, times
from fedhybrid.report.comparison.figures.panels import Scene
from fedhybrid.report.figures import Theme

__all__ = ["DRAWINGS", "Drawing", "Scene"]


class Drawing(NamedTuple):
    """`draw` gives None where there is nothing to draw."""

    title: str
    caption: str
    draw: Callable[[Sequence[Scene], Theme], Figure | None]


DRAWINGS: dict[str, Drawing] = {
    "accuracy": Drawing("Accuracy over virtual time", curves.CAPTION, curves.draw),
    "time-to-target": Drawing("Time to each target", times.CAPTION, times.draw),
    "participation": Drawing("Participation by budget tier", tiers.CAPTION, tiers.draw),
    "worst-tier": Drawing("Whom the models serve", served.CAPTION, served.draw),
}
