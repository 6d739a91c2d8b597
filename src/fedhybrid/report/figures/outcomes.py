"""How ends of tasks look in every figure that tells them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from matplotlib.patches import Patch

from fedhybrid.records import COMPLETED, ClientRecord
from fedhybrid.report.figures.style import Theme
from fedhybrid.report.tasks import words

__all__ = ["Look", "legend", "looks"]


class Look(NamedTuple):
    """A bar's colour, and its hatch where there are more outcomes than colours."""

    colour: str
    hatch: str


def looks(tasks: Iterable[ClientRecord], theme: Theme) -> dict[str, Look]:
    """Each outcome that occurs: completed first, then failures, the most frequent first."""
    counts = Counter(task.outcome for task in tasks)
    failures = [kind for kind, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if kind != COMPLETED]
    shades = theme.series[1:]
    found = {COMPLETED: Look(theme.series[0], "")} if COMPLETED in counts else {}
    for place, kind in enumerate(failures):
        found[kind] = Look(shades[place % len(shades)], "" if place < len(shades) else "////")
    return found


def legend(shown: dict[str, Look], theme: Theme) -> list[Patch]:
    """One patch an outcome."""
    return [
        Patch(facecolor=look.colour, hatch=look.hatch, edgecolor=theme.paper, linewidth=0.0, label=words(kind))
        for kind, look in shown.items()
    ]
