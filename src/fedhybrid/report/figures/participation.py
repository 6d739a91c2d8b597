"""Who takes part: devices reached and tasks completed, by budget tier, one column of panels per run."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedhybrid.report.facts import TierFacts, tier_order, tiers_of
from fedhybrid.report.figures.style import Theme, colours, hide_spines, new_figure
from fedhybrid.report.load import Runs
from fedhybrid.report.text import shorten

__all__ = ["caption", "draw"]

_ROOMY = 3  # runs beside each other that leave room for words


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no run knows any tier."""
    tiers = tier_order(runs)
    if not tiers:
        return None
    facts = {label: tiers_of(run) for label, run in runs.items()}
    figure = new_figure(1.3 + 0.46 * len(tiers))
    panels = figure.subplots(2, len(runs), sharey=True, squeeze=False)
    most = max((t.tasks + t.failed for run in facts.values() for t in run.values()), default=0) or 1
    colour = colours(runs, theme)
    title_length = max(12, 60 // len(runs))
    for column, label in enumerate(runs):
        above, below = panels[:, column]
        above.set_title(shorten(label, title_length), color=colour[label], fontweight="bold")
        for row, tier in enumerate(tiers):
            if tier in facts[label]:
                _draw_reached(above, row, facts[label][tier], theme, colour[label])
                _draw_tasks(
                    below,
                    row,
                    facts[label][tier],
                    most=most,
                    theme=theme,
                    colour=colour[label],
                    short=len(runs) > _ROOMY,
                )
        for axes in (above, below):
            hide_spines(axes, "bottom", "left")
            axes.set_xlim(0, 1.75 if len(runs) > _ROOMY else 1.4)
            axes.set_xticks([])
            axes.set_yticks(range(len(tiers)), [shorten(tier, 16) for tier in tiers])
            axes.tick_params(axis="y", length=0)
            axes.set_ylim(len(tiers) - 0.5, -0.5)
    panels[0, 0].set_ylabel("devices reached")
    panels[1, 0].set_ylabel("tasks completed")
    return figure


def _draw_reached(axes: Axes, row: int, tier: TierFacts, theme: Theme, colour: str) -> None:
    if tier.clients is None:
        axes.annotate(f"{tier.reached} reached", (0.02, row), va="center", fontsize=8, color=theme.ink)
        return
    axes.barh(row, 1.0, height=0.62, color=theme.track)
    axes.barh(row, tier.reached / tier.clients if tier.clients else 0.0, height=0.62, color=colour)
    axes.annotate(
        f"{tier.reached} of {tier.clients}",
        (1.04, row),
        va="center",
        fontsize=8,
        color=theme.ink if tier.reached else theme.muted,
    )


def _draw_tasks(axes: Axes, row: int, tier: TierFacts, *, most: int, theme: Theme, colour: str, short: bool) -> None:
    done, failed = tier.tasks / most, tier.failed / most
    axes.barh(row, done, height=0.62, color=colour)
    if failed:
        axes.barh(
            row, failed, left=done, height=0.62, facecolor="none", edgecolor=theme.alarm, hatch="////", linewidth=0.8
        )
    axes.annotate(
        f"{tier.tasks}"
        + (f" +{tier.failed}" if tier.failed else "")
        + (" failed" if tier.failed and not short else ""),
        (done + failed + 0.04, row),
        va="center",
        fontsize=8,
        color=theme.ink if tier.tasks else theme.muted,
    )


def caption(runs: Runs) -> str:
    """How to read the figure, with the tiers that a run left out."""
    text = (
        "Above: of each budget tier, the share of its devices that completed at least one task (full bar: all). "
        "Below: tasks completed on one scale for all runs; hatched, and the number after the plus, are tasks "
        "that failed. The smallest budget is on top. "
        "An empty bar is a tier whose data the model never saw."
    )
    for label, run in runs.items():
        left_out = [tier.name for tier in tiers_of(run).values() if not tier.reached]
        if left_out:
            text += f" {label} left out {', '.join(left_out)}."
    return text
