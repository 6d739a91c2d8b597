"""How `fedhybrid plan` answers: a table, a JSON object, or files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from fedhybrid.cli.hardlimit import STEPS, HardLimit
from fedhybrid.cli.output import notes, print_json, results
from fedhybrid.cli.planning import Planned
from fedhybrid.errors import ConfigError
from fedhybrid.planner import Plan
from fedhybrid.report import RunRecords
from fedhybrid.report.figures import FIGURES, LIGHT, themed
from fedhybrid.report.text import shorten
from fedhybrid.units import format_bytes, format_seconds

__all__ = ["as_object", "draw_timeline", "show"]


def show(planned: Planned, *, as_json: bool, out: Path | None) -> None:
    """Prints the answer, and writes the plan and its picture where `out` says."""
    if out is not None:
        _write(planned, out)
    if as_json:
        print_json(as_object(planned))
    else:
        results().print(_table(planned))


def as_object(planned: Planned) -> dict[str, Any]:
    """The answer as a JSON object; measured figures only where a step was measured."""
    plan, measured = planned.plan, planned.measurement
    answer: dict[str, Any] = {
        "model": planned.title,
        "resident_bytes": plan.resident_bytes,
        "eager_peak_bytes": plan.eager_peak_bytes,
        "keep_all_peak_bytes": plan.keep_all_peak_bytes,
        "budget_bytes": plan.budget_bytes,
        "peak_bytes": plan.peak_bytes,
        "predicted_step_time_s": plan.step_time_s,
        "extra_time_s": plan.extra_time_s,
        "bound_extra_time_s": plan.bound_extra_time_s,
        "gap_ratio": (plan.extra_time_s - plan.bound_extra_time_s) / plan.step_time_s if plan.step_time_s else 0.0,
        "gradient_error": plan.gradient_error,
        "solver": plan.solver,
        "decisions": action_counts(planned),
        "fingerprint": plan.fingerprint,
        "threads": plan.threads,
    }
    if measured is not None:
        answer |= {
            "mode": planned.mode,
            "measured_peak_bytes": measured.peak_bytes,
            "measured_eager_peak_bytes": measured.eager_peak_bytes,
            "step_time_s": measured.step_time_s,
            "eager_step_time_s": measured.eager_step_time_s,
            "time_ratio": measured.time_ratio,
            "measured_gradient_error": measured.gradient_error,
            "bit_identical": measured.bit_identical,
        }
    if planned.hard_limit is not None:
        answer |= _limit_object(planned.hard_limit)
    return answer


def _limit_object(limit: HardLimit) -> dict[str, Any]:
    return {
        "margin_bytes": limit.margin_bytes,
        "warm_base_bytes": limit.planned.warm_base_bytes,
        "hard_limit_bytes": limit.planned.limit_bytes,
        "survived": limit.planned.survived,
        "death": limit.planned.death,
        "eager_hard_limit_bytes": limit.eager.limit_bytes,
        "eager_survived": limit.eager.survived,
        "eager_death": limit.eager.death,
    }


def action_counts(planned: Planned) -> dict[str, int]:
    """How many tensors each action is decided for."""
    return dict(sorted(Counter(str(decision.action) for decision in planned.plan.decisions).items()))


def _table(planned: Planned) -> Table:
    plan, measured = planned.plan, planned.measurement
    table = Table(title=planned.title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    above_bytes = plan.eager_peak_bytes - plan.resident_bytes

    def add_bytes(name: str, total_bytes: int) -> None:
        table.add_row(name, format_bytes(total_bytes), f"{(total_bytes - plan.resident_bytes) / above_bytes:.1%}")

    table.add_row("resident", format_bytes(plan.resident_bytes), "parameters, buffers, optimizer state, batch")
    eager_share = "100.0% is eager's peak above resident"
    table.add_row("eager peak", format_bytes(plan.eager_peak_bytes), eager_share)
    add_bytes("keep-all peak", plan.keep_all_peak_bytes)
    if plan.budget_bytes is not None:
        add_bytes("budget", plan.budget_bytes)
    add_bytes("planned peak", plan.peak_bytes)
    if measured is not None:
        add_bytes("measured peak", measured.peak_bytes)
        add_bytes("measured eager peak", measured.eager_peak_bytes)
    table.add_row(
        "predicted extra time", format_seconds(plan.extra_time_s), f"of {format_seconds(plan.step_time_s)} a step"
    )
    gap_s = plan.extra_time_s - plan.bound_extra_time_s
    table.add_row(
        "proven bound",
        format_seconds(plan.bound_extra_time_s),
        f"no plan costs less; gap {gap_s / plan.step_time_s:.1%} of a step",
    )
    if measured is not None:
        both = f"{format_seconds(measured.step_time_s)} a step, eager {format_seconds(measured.eager_step_time_s)}"
        table.add_row("time ratio", f"{measured.time_ratio:.2f}", f"measured: {both}")
        same = "yes" if measured.bit_identical else "no"
        table.add_row("bit-identical", same, f"to eager; mode {planned.mode}, {plan.threads} thread(s)")
    counts = ", ".join(f"{action} {count}" for action, count in action_counts(planned).items())
    if planned.hard_limit is not None:
        _add_limit(table, planned.hard_limit)
    table.add_row(
        "decisions", counts or "none", f"solver {plan.solver}, gradient error {_error_text(plan.gradient_error)}"
    )
    return table


def _add_limit(table: Table, limit: HardLimit) -> None:
    said = f"RLIMIT_DATA: {format_bytes(limit.planned.warm_base_bytes)} held after a warm step + planned above resident"
    table.add_row("hard limit", format_bytes(limit.planned.limit_bytes), f"{said} + {format_bytes(limit.margin_bytes)}")
    for name, outcome in (("survives it", limit.planned), ("eager survives it", limit.eager)):
        said = f"{STEPS} more steps" if outcome.survived else shorten(outcome.death or "", 70)
        table.add_row(name, "yes" if outcome.survived else "no", said)


def _write(planned: Planned, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "plan.json").write_text(planned.plan.to_json() + "\n")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error})") from error
    drawn = draw_timeline(planned.plan, planned.title, out)
    files = "plan.json and timeline.png are" if drawn else "plan.json is"
    notes().print(f"{files} in {out}", markup=False, highlight=False, soft_wrap=True)


def draw_timeline(plan: Plan, title: str, out: Path) -> bool:
    """Writes timeline.png into `out`; False for a step in eager mode, which has no timeline.

    Raises:
        ConfigError: `out` cannot be written.
    """
    # The figure is the report's: to it this is a run with one plan and no task yet.
    plans = {plan.solver: json.loads(plan.to_json())}
    alone = RunRecords(folder=out, rounds=(), clients=(), summary=None, plans=plans, config={})
    try:
        out.mkdir(parents=True, exist_ok=True)
        with themed(LIGHT):
            figure = FIGURES["timeline"].draw({title: alone}, LIGHT)
            if figure is not None:
                figure.savefig(out / "timeline.png")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error})") from error
    return figure is not None


def _error_text(error: float | None) -> str:
    return "not looked at" if error is None else f"{error:g}"
