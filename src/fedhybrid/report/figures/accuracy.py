"""Test accuracy over virtual time, one line a run."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fedhybrid.report.facts import accuracy_curve, accuracy_targets, clock_words, time_to_accuracy_s
from fedhybrid.report.figures.style import Theme, colours, new_figure, spread
from fedhybrid.report.load import Runs
from fedhybrid.report.tasks import is_asynchronous
from fedhybrid.report.text import duration, percent, shorten, time_scale

__all__ = ["caption", "draw"]

_MARKED_TESTS = 40  # beyond, the points of single tests would merge into the line
_SHOWN_TARGETS = 3


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no run has been tested."""
    shown = {label: run for label, run in runs.items() if accuracy_curve(run)}
    if not shown:
        return None
    figure = new_figure(3.7)
    axes = figure.add_subplot()
    colour = colours(runs, theme)
    unit_s, unit = time_scale(max(run.rounds[-1].virtual_time_s for run in shown.values()))
    for label, run in shown.items():
        tests = accuracy_curve(run)
        axes.plot(
            [test.virtual_time_s / unit_s for test in tests],
            [test.accuracy for test in tests],
            color=colour[label],
            linewidth=2,
            marker="o" if len(tests) <= _MARKED_TESTS else "",
            markersize=3.5,
            clip_on=False,
            zorder=3,
        )
    lowest = min(test.accuracy for run in shown.values() for test in accuracy_curve(run))
    axes.set_ylim(0.1 * int(max(0.0, lowest - 0.05) * 10) if lowest > 0.3 else 0.0, 1.0)
    longest = max(run.rounds[-1].virtual_time_s for run in shown.values()) / unit_s
    axes.set_xlim(0, longest or 1.0)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
    axes.set_xlabel(f"{clock_words(shown)} ({unit})")
    axes.set_title("test accuracy", fontsize=9, color=theme.muted)
    _mark_targets(axes, shown, theme, unit_s)
    _label_ends(axes, shown, theme, unit_s)
    return figure


def _mark_targets(axes: Axes, runs: Runs, theme: Theme, unit_s: float) -> None:
    colour = colours(runs, theme)
    for target in accuracy_targets(runs)[-_SHOWN_TARGETS:]:
        axes.axhline(target, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        for label, run in runs.items():
            met = next((test for test in accuracy_curve(run) if test.accuracy >= target), None)
            if met is not None:
                axes.plot(
                    [met.virtual_time_s / unit_s],
                    [met.accuracy],
                    marker="o",
                    markersize=8,
                    markerfacecolor=theme.paper,
                    markeredgecolor=colour[label],
                    markeredgewidth=2,
                    zorder=4,
                    clip_on=False,
                )


def _label_ends(axes: Axes, runs: Runs, theme: Theme, unit_s: float) -> None:
    """Names and last values in the right margin, each tied to its line's end by a thin leader."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    ends = {label: accuracy_curve(run)[-1] for label, run in runs.items()}
    places = spread([last.accuracy for last in ends.values()], 0.115 * (high - low))
    shift = min(0.0, high - max(places))
    colour = colours(runs, theme)
    for (label, run), place in zip(runs.items(), places, strict=True):
        last = ends[label]
        axes.plot(
            [last.virtual_time_s / unit_s, right, right * 1.03],
            [last.accuracy, last.accuracy, place + shift],
            color=colour[label],
            linewidth=0.8,
            linestyle=(0, (1, 2)),
            clip_on=False,
            zorder=2,
        )
        unfinished = "" if run.summary else ", unfinished"
        axes.annotate(
            f"{shorten(label, 24)}\n{percent(last.accuracy)}{unfinished}",
            (right * 1.035, place + shift),
            color=colour[label],
            fontsize=8.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            linespacing=1.15,
        )


def caption(runs: Runs) -> str:
    """How to read the figure, with the times to the highest target that every run met or any did."""
    merged = any(is_asynchronous(run) for run in runs.values())
    end = "after a round or, in asynchronous runs, after an aggregation" if merged else "at the end of a round"
    text = (
        f"Each line is one run; a dot is a test {end}. Higher is better, further left is sooner. Time is "
        f"{_clock(runs)}."
    )
    targets = accuracy_targets(runs)
    if not targets:
        return text
    times = {label: time_to_accuracy_s(run, targets[-1]) for label, run in runs.items()}
    met = [
        f"{label} after {duration(t)}" for t, label in sorted((t, label) for label, t in times.items() if t is not None)
    ]
    missed = [f"{label} never" for label, t in times.items() if t is None]
    return (
        f"{text} Dotted lines are accuracy targets; a ring marks the round in which a run first met one: "
        f"{percent(targets[-1], 0)} by {', '.join(met + missed)}."
    )


def _clock(runs: Runs) -> str:
    if clock_words(runs) == "real time":
        return "real: real devices trained"
    return "virtual: what training would take on the simulated devices, planning overhead included"
