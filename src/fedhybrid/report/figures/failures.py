"""Tasks that failed, by budget tier and kind: one column of bars a run."""

from __future__ import annotations

from collections import Counter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedhybrid.records import COMPLETED
from fedhybrid.report.facts import tier_order
from fedhybrid.report.figures.outcomes import Look, legend, looks
from fedhybrid.report.figures.style import Theme, hide_spines, new_figure
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tasks import failed_tasks, training_tasks
from fedhybrid.report.text import shorten

__all__ = ["caption", "draw"]

_BESIDE = 3  # runs beside each other; more go below
_LEGEND_COLUMNS = 6


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no task failed."""
    shown = {label: run for label, run in runs.items() if failed_tasks(run)}
    if not shown:
        return None
    tiers = tier_order(shown)
    look = looks([task for run in shown.values() for task in failed_tasks(run)], theme)
    columns = min(_BESIDE, len(shown))
    lines, legend_lines = -(-len(shown) // columns), -(-len(look) // _LEGEND_COLUMNS)
    figure = new_figure(0.35 + 0.2 * legend_lines + lines * (0.5 + 0.27 * len(tiers)))
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    widest = max(_draw_run(axes, run, tiers, look) for axes, run in zip(panels, shown.values(), strict=False))
    for axes, (label, run) in zip(panels, shown.items(), strict=False):
        axes.set_xlim(0, 1.4 * widest)
        _write_counts(axes, run, tiers, theme)
        axes.set_title(shorten(label, max(16, 66 // columns)), fontweight="bold")
        axes.set_yticks(range(len(tiers)), [shorten(tier, 16) for tier in tiers])
        axes.set_ylim(len(tiers) - 0.5, -0.5)
        axes.tick_params(length=0)
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}\u00a0%"))
        axes.set_xticks([tick for tick in MaxNLocator(nbins=4).tick_values(0, widest) if tick <= min(1, 1.2 * widest)])
        hide_spines(axes, "left", "bottom")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.legend(
        handles=legend(look, theme), loc="outside upper left", ncols=_LEGEND_COLUMNS, columnspacing=1.2,
        handlelength=1.2, handletextpad=0.5,
    )  # fmt: skip
    return figure


def _draw_run(axes: Axes, run: RunRecords, tiers: list[str], look: dict[str, Look]) -> float:
    """Stacks each tier's failures as shares of its tasks; returns the longest bar's length."""
    longest = 0.0
    for row, tier in enumerate(tiers):
        counts = Counter(task.outcome for task in training_tasks(run) if task.tier == tier)
        left = 0.0
        for kind, (colour, hatch) in look.items():
            if counts[kind]:
                share = counts[kind] / counts.total()
                axes.barh(
                    row, share, left=left, height=0.62, facecolor=colour, hatch=hatch, linewidth=0.6,
                    edgecolor=axes.get_facecolor(),
                )  # fmt: skip
                left += share
        longest = max(longest, left)
    return longest


def _write_counts(axes: Axes, run: RunRecords, tiers: list[str], theme: Theme) -> None:
    for row, tier in enumerate(tiers):
        tasks = [task for task in training_tasks(run) if task.tier == tier]
        failed = sum(task.outcome != COMPLETED for task in tasks)
        if tasks:
            axes.annotate(
                f"{failed:,} of {len(tasks):,}", (failed / len(tasks), row), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8, color=theme.ink if failed else theme.muted,
            )  # fmt: skip


def caption(runs: Runs) -> str:
    """How to read the figure."""
    text = (
        "Of each budget tier's tasks (smallest budget on top) the share that failed, by kind; the numbers are tasks. "
        "A failed task costs its device time and energy and brings the model nothing."
    )
    if any(task.outcome == "late" for run in runs.values() for task in failed_tasks(run)):
        text += " Late is a task for which nobody waited any longer: the round had ended."
    if any(task.outcome == "stale" for run in runs.values() for task in failed_tasks(run)):
        text += " Stale is an update that began with too old a model to be used."
    return text
