"""Peak against time: what each byte less costs, with the peers beside the plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from fedhybrid.report.figures.style import Theme, new_figure
from fedhybrid.report.text import MIB, mib

__all__ = ["TradePoint", "draw_tradeoff"]

_PEER_MARKERS = ("D", "s", "^", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class TradePoint:
    """One way to run the step.

    Attributes:
        label: The budget as it was asked for, or the peer's name.
        kind: "plan", "peer" or "eager".
        peak_bytes: Planned, or for eager computed; resident bytes included.
        extra_time_s: Predicted seconds beyond the captured program's; None for eager, which is another program.
        bound_extra_time_s: Proven lower bound of it over all plans for the budget.
        step_time_s: Predicted seconds of the whole step.
        measured_peak_bytes, time_ratio: Of real steps, against eager ones run in turn; None where none was run.
    """

    label: str
    kind: str
    budget_bytes: int | None
    peak_bytes: int
    extra_time_s: float | None
    bound_extra_time_s: float | None
    step_time_s: float | None
    gradient_error: float | None
    solver: str
    measured_peak_bytes: int | None = None
    time_ratio: float | None = None

    @property
    def extra_ratio(self) -> float | None:
        """Predicted extra time relative to the captured program without any decision."""
        if self.extra_time_s is None or self.step_time_s is None:
            return None
        return self.extra_time_s / (self.step_time_s - self.extra_time_s)


def draw_tradeoff(
    points: Sequence[TradePoint], theme: Theme, *, title: str, resident_bytes: int, eager_peak_bytes: int
) -> Figure:
    """Predicted extra time over peak, and below it the measured time where there is one.

    Args:
        points: Plans, peers and eager, in any order.
        theme: How it looks.
        title: What was planned.
        resident_bytes: Left end of the scale in per cent.
        eager_peak_bytes: 100 % of it.
    """
    measured = any(p.time_ratio is not None for p in points)
    figure = new_figure(6.4 if measured else 3.9)
    panels = figure.subplots(2 if measured else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_panel(panels[0], points, theme, _predicted, "plans")
    _draw_bound(panels[0], points, theme)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol="\u00a0%"))
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    panels[0].set_ylabel("extra time, predicted")
    panels[0].set_title(f"{title}: what a smaller peak costs", pad=24)
    if measured:
        _draw_panel(panels[1], points, theme, lambda p: p.time_ratio, "plans")
        panels[1].axhline(1.0, color=theme.muted, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        panels[1].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"\u00d7{y:.2f}"))
        panels[1].set_ylabel("step time / eager, measured")
    above_mib, resident_mib = (eager_peak_bytes - resident_bytes) / MIB, resident_bytes / MIB
    for axes in panels:
        axes.grid(axis="both")
        axes.tick_params(length=0)
        axes.axvline(resident_mib, color=theme.muted, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    panels[0].annotate(
        f"resident {mib(resident_bytes)}", (resident_mib, 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0),
        textcoords="offset points", color=theme.muted, fontsize=7.5, rotation=90, va="top",
    )  # fmt: skip
    panels[-1].set_xlabel("peak of the step, resident bytes included (MiB)")
    panels[0].set_xlim(0, 1.06 * max(p.peak_bytes for p in points) / MIB)
    share = panels[0].secondary_xaxis(
        "top", functions=(lambda x: (x - resident_mib) / above_mib, lambda s: s * above_mib + resident_mib)
    )
    share.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="\u00a0%"))
    share.set_xticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    share.tick_params(length=0, labelsize=7.5)
    share.spines["top"].set_visible(False)
    return figure


def _predicted(point: TradePoint) -> float | None:
    return point.extra_ratio


def _draw_panel(
    axes: Axes, points: Sequence[TradePoint], theme: Theme, height: Callable[[TradePoint], float | None], name: str
) -> None:
    """Plans as a staircase (between two of them the smaller one is what a budget gets), the others as single marks."""
    plans = [p for p in points if p.kind == "plan"]
    shown = [(p.peak_bytes / MIB, y, p) for p in reversed(plans) if (y := height(p)) is not None]
    if shown:
        axes.plot(
            [x for x, _, _ in shown], [y for _, y, _ in shown], color=theme.series[0], linewidth=1.6, marker="o",
            markersize=5, drawstyle="steps-post", zorder=3, label=name, clip_on=False,
        )  # fmt: skip
    marks = {p.label: (p.peak_bytes / MIB, y, p) for p in points if p.kind != "plan" and (y := height(p)) is not None}
    for index, (x, y, point) in enumerate(marks.values()):
        colour = theme.ink if point.kind == "eager" else theme.series[1 + index % (len(theme.series) - 1)]
        axes.plot(
            [x], [y], linestyle="", marker="*" if point.kind == "eager" else _PEER_MARKERS[index % len(_PEER_MARKERS)],
            markersize=9 if point.kind == "eager" else 6.5, color=colour, zorder=4, label=point.label, clip_on=False,
        )  # fmt: skip
    _label_plans(axes, shown, theme)
    axes.legend(loc="upper right", fontsize=8)


def _label_plans(axes: Axes, shown: Sequence[tuple[float, float, TradePoint]], theme: Theme) -> None:
    """The budgets beside their points; several budgets that share one plan share its label."""
    joined: dict[tuple[float, float], list[str]] = {}
    for x, y, point in shown:
        joined.setdefault((x, y), []).append(point.label)
    for (x, y), labels in joined.items():
        text = labels[0] if len(labels) == 1 else f"{labels[0]} \u2026 {labels[-1]}"
        axes.annotate(
            text, (x, y), xytext=(4, 5), textcoords="offset points", fontsize=7.5, color=theme.series[0], zorder=5
        )


def _draw_bound(axes: Axes, points: Sequence[TradePoint], theme: Theme) -> None:
    """Between two budgets the larger one's bound, which holds for all below it."""
    bounds = sorted(
        (p.budget_bytes / MIB, p.bound_extra_time_s / (p.step_time_s - p.extra_time_s))
        for p in points
        if p.budget_bytes is not None and p.bound_extra_time_s is not None
        if p.step_time_s is not None and p.extra_time_s is not None
    )
    if any(y for _, y in bounds):
        axes.plot(
            [x for x, _ in bounds], [y for _, y in bounds], color=theme.muted, linewidth=1.0, linestyle=(0, (4, 3)),
            drawstyle="steps-pre", zorder=2, label="proven lower bound",
        )  # fmt: skip
        axes.legend(loc="upper right", fontsize=8)
