"""Streams: what the model knows after each task, and what is left of the first ones."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedhybrid.records import RoundRecord
from fedhybrid.report.figures.style import Theme, colours, new_figure
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.text import percent, shorten

__all__ = ["caption", "draw"]


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no run's classes come one task after the other."""
    shown = {label: ends for label, run in runs.items() if (ends := _ends(run))}
    if not shown:
        return None
    figure = new_figure(2.9)
    seen, left = figure.subplots(1, 2, sharey=True)
    for label, ends in shown.items():
        colour = colours(runs, theme)[label]
        seen.plot(_numbers(len(ends)), [end.accuracy for end in ends], "o-", color=colour, markersize=4, label=label)
        known = ends[-1].task_accuracies or []
        left.plot(_numbers(len(known)), known, "o-", color=colour, markersize=4)
    if len(shown) > 1:
        seen.legend([shorten(label, 24) for label in shown], loc="lower left")
    _finish(seen, "All classes so far, at the end of each task", "tasks so far")
    _finish(left, "Each task's classes, at the end", "task")
    seen.set_ylabel("test accuracy")
    return figure


def _ends(run: RunRecords) -> list[RoundRecord]:
    """The last test of each task so far."""
    tests = {record.task: record for record in run.rounds if record.task is not None and record.task_accuracies}
    return [tests[task] for task in sorted(tests, key=lambda task: task or 0)]


def _numbers(count: int) -> list[int]:
    return list(range(1, count + 1))


def _finish(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(below)
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
    axes.grid(axis="y")
    axes.tick_params(length=0)


def caption(runs: Runs) -> str:
    """How to read the figure, with the two usual figures of each run."""
    text = (
        "Left: accuracy on the test samples of all classes that have come, at each task's end. Right: what the final "
        "model knows of each task."
    )
    for label, run in runs.items():
        if run.summary is None or run.summary.average_incremental_accuracy is None:
            continue
        name = f" {label}:" if label else ""
        text += f"{name} average incremental accuracy {percent(run.summary.average_incremental_accuracy)}"
        text += "." if run.summary.forgetting is None else f", forgetting {percent(run.summary.forgetting)}."
    return text
