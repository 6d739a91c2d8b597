"""The figures of a report, in the order of the page. A new one is a file with `draw` and `caption`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from fedhybrid.report.figures import (
    accuracy,
    cohorts,
    failures,
    fairness,
    participation,
    peaks,
    staleness,
    stream,
    tasks,
    timeline,
)
from fedhybrid.report.figures.style import DARK, LIGHT, Theme, themed
from fedhybrid.report.figures.tradeoff import TradePoint, draw_tradeoff
from fedhybrid.report.load import Runs

__all__ = ["DARK", "FIGURES", "LIGHT", "Drawing", "Theme", "TradePoint", "draw_tradeoff", "themed"]


class Drawing(NamedTuple):
    """`draw` gives None where the records hold nothing to draw; `needs` then says what is missing.

    Where `needs` is empty nothing is missing: not every run has failures, or updates that come late.
    """

    title: str
    draw: Callable[[Runs, Theme], Figure | None]
    caption: Callable[[Runs], str]
    needs: str = ""


FIGURES: dict[str, Drawing] = {
    "accuracy": Drawing("Accuracy over time", accuracy.draw, accuracy.caption, "a round that was tested"),
    "stream": Drawing("What was learnt task by task, and forgotten", stream.draw, stream.caption),
    "peaks": Drawing(
        "Budget, planned and measured peak of every device", peaks.draw, peaks.caption, "a task given to a device"
    ),
    "participation": Drawing(
        "Participation by budget tier", participation.draw, participation.caption, "a task given to a device"
    ),
    "fairness": Drawing("Whom training reached, and whom the model serves", fairness.draw, fairness.caption),
    "timeline": Drawing(
        "Memory over one step, before and after planning", timeline.draw, timeline.caption, "a plan with its timelines"
    ),
    "cohorts": Drawing("Cohort of each round", cohorts.draw, cohorts.caption, "a task given to a device"),
    "tasks": Drawing("Tasks under way", tasks.draw, tasks.caption),
    "staleness": Drawing("Staleness of updates", staleness.draw, staleness.caption),
    "failures": Drawing("Failures, and memory that fell short", failures.draw, failures.caption),
}
