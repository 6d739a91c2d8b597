"""Memory over one training step, without a plan and with the tightest plan of the runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedhybrid.records import FloatArray
from fedhybrid.report.facts import TightPlan, tightest_plan
from fedhybrid.report.figures.style import Theme, colours, hide_spines, new_figure, spread
from fedhybrid.report.load import Runs
from fedhybrid.report.text import MIB, mib, percent, shorten

__all__ = ["caption", "draw"]


def draw(runs: Runs, theme: Theme) -> Figure | None:
    """None where no plan of the runs carries its timelines."""
    tight = tightest_plan(runs)
    if tight is None:
        return None
    figure = new_figure(3.6)
    axes = figure.add_subplot()
    colour = colours(runs, theme)[tight.label]
    eager = np.asarray(tight.plan["timelines"]["eager"], dtype=np.float64) / MIB
    planned = np.asarray(tight.plan["timelines"]["planned"], dtype=np.float64) / MIB
    marked = {"eager", "planned"} <= tight.plan.get("timeline_marks", {}).keys()
    for name, bytes_mib, shade in (("eager", eager, theme.muted), ("planned", planned, colour)):
        x = _places(len(bytes_mib), _backward_at(tight.plan, name) if marked else None)
        axes.fill_between(x, bytes_mib, step="post", color=shade, alpha=0.22 if name == "eager" else 0.4, linewidth=0)
        axes.step(x, bytes_mib, where="post", color=shade, linewidth=1.3)
        axes.hlines(bytes_mib.max(), x[int(bytes_mib.argmax())], 2, color=shade, linewidth=0.8, linestyle=(0, (1, 2)))
    top = max(eager.max(), planned.max(), (tight.budget_bytes or 0) / MIB)
    axes.set_ylim(0, 1.12 * top)
    axes.set_xlim(0, 2)
    axes.set_ylabel("MiB held")
    axes.grid(axis="y")
    hide_spines(axes, "left")
    axes.set_title(f"one training step: {shorten(tight.label, 30)}, plan {shorten(tight.name, 30)}")
    axes.set_xticks(
        [0.5, 1.5] if marked else [1.0], ["forward pass", "backward pass and updates"] if marked else ["step"]
    )
    axes.tick_params(length=0)
    if marked:
        axes.axvline(1, color=theme.muted, linewidth=0.9, linestyle=(0, (1, 2)))
    _label_levels(axes, tight, eager, planned, theme=theme, colour=colour)
    return figure


def _backward_at(plan: dict[str, Any], name: str) -> int | None:
    at = plan["timeline_marks"][name].get("backward_at")
    return at if at is None else int(at)


def _places(count: int, backward_at: int | None) -> FloatArray:
    """Where each operator is drawn: forward in 0..1, the rest in 1..2, so that the passes of all timelines line up."""
    if backward_at is None or not 0 < backward_at < count:
        return np.linspace(0.0, 2.0, count)
    return np.concatenate(
        [np.linspace(0.0, 1.0, backward_at, endpoint=False), np.linspace(1.0, 2.0, count - backward_at)]
    )


def _label_levels(
    axes: Axes, tight: TightPlan, eager: FloatArray, planned: FloatArray, *, theme: Theme, colour: str
) -> None:
    """Names and amounts in the right margin, each tied to its level; the measured peak stands under the planned one."""
    plan = tight.plan
    promise = f"planned {mib(plan['peak_bytes'])}"
    if tight.measured_peak_bytes is not None:
        promise += f"\nmeasured {mib(tight.measured_peak_bytes)}"
    levels = [
        (float(eager.max()), f"PyTorch eager\n{mib(plan['eager_peak_bytes'])}", theme.muted),
        (float(planned.max()), promise, colour),
        (plan["resident_bytes"] / MIB, f"resident\n{mib(plan['resident_bytes'])}", theme.muted),
    ]
    axes.axhline(plan["resident_bytes"] / MIB, color=theme.muted, linewidth=0.9, linestyle=(0, (1, 2)))
    if tight.budget_bytes is not None:
        axes.axhline(tight.budget_bytes / MIB, color=theme.ink, linewidth=1.5)
        levels.append((tight.budget_bytes / MIB, f"budget\n{mib(tight.budget_bytes)}", theme.ink))
    levels.sort(key=lambda level: level[0])
    top = axes.get_ylim()[1]
    places = spread([level[0] for level in levels], 0.125 * top)
    shift = max(0.0, 0.04 * top - places[0])
    for (level, text, shade), place in zip(levels, places, strict=True):
        axes.plot([2, 2.05], [level, place + shift], color=shade, linewidth=0.8, linestyle=(0, (1, 2)), clip_on=False)
        axes.annotate(text, (2.06, place + shift), color=shade, fontsize=8.5, va="center", annotation_clip=False)


def caption(runs: Runs) -> str:
    """How to read the figure, with planned and measured peak."""
    tight = tightest_plan(runs)
    if tight is None:
        return ""
    plan = tight.plan
    measured = "" if tight.measured_peak_bytes is None else f", measured {mib(tight.measured_peak_bytes)}"
    return (
        "Memory held while one step runs, operator by operator, from left to right: grey in PyTorch eager, in colour "
        "with the tightest plan of these runs. The forward pass piles up activations that the backward pass needs; the "
        "plan drops some and computes them again, which cuts the top off. "
        f"PyTorch eager {mib(plan['eager_peak_bytes'])}, planned {mib(plan['peak_bytes'])}{measured} "
        f"({percent(plan['peak_bytes'] / plan['eager_peak_bytes'], 0)} of eager's peak); "
        f"{mib(plan['resident_bytes'])} are parameters, optimizer state and batch, which no plan can drop."
    )
