"""The work behind `fedhybrid pareto`: one capture, a ladder of budgets, and the peers beside it."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass

import torch

from fedhybrid.cli.arguments import attempt
from fedhybrid.cli.output import notes, stage
from fedhybrid.cli.planning import Search, search_problems
from fedhybrid.cli.subject import Subject, build, capture
from fedhybrid.errors import ConfigError, InfeasibleBudgetError
from fedhybrid.executor import Measurement, PreparedStep, TrainStep
from fedhybrid.planner import SOLVERS, Plan, monotone
from fedhybrid.report.figures import TradePoint
from fedhybrid.units import Budget, parse_budget

__all__ = ["CurveRequest", "Tradeoff", "carry_out_curve", "parse_budgets"]

PEERS = ("keep-all", "checkpoint-blocks", "recompute-all")  # solvers that ignore the budget: one point each
_UNLIMITED = 2**62  # bytes; a peer is shown whatever it needs


@dataclass(frozen=True, kw_only=True)
class CurveRequest:
    """What was asked for, as typed on the command line."""

    subject: Subject
    search: Search
    budgets: str
    measure: bool


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """The curve: plans from the largest budget down, then peers, then eager.

    `infeasible` are budgets of the ladder that no plan fits; the ladder's last plan, "smallest", takes their place.
    """

    title: str
    resident_bytes: int
    eager_peak_bytes: int
    points: tuple[TradePoint, ...]
    infeasible: tuple[str, ...]
    plans: dict[str, Plan]


def carry_out_curve(request: CurveRequest) -> Tradeoff:
    """Plans every budget of the ladder and every peer, and measures them if asked to.

    Raises:
        ConfigError: Something about the request is wrong; everything that is, at once.
        CaptureError: The model does not trace.
    """
    problems = search_problems(request.search)
    built = build(request.subject, problems)
    budgets = attempt(problems, lambda: parse_budgets(request.budgets))
    if problems:
        raise ConfigError(problems)
    assert built is not None
    assert budgets is not None
    if request.subject.threads is not None:
        torch.set_num_threads(request.subject.threads)
    prepared = capture(built)
    with stage(notes(), f"planning {len(budgets)} budgets"):
        ladder, infeasible = _ladder(prepared, budgets, request.search)
    peers = {name: prepared.plan(_UNLIMITED, solver=name) for name in PEERS if name in SOLVERS}
    measured: dict[Hashable, Measurement] = {}  # several budgets may share one plan: one program, one measurement
    points = []
    for kind, plans in (("plan", ladder), ("peer", peers)):
        for label, plan in plans.items():
            if request.measure and plan.key not in measured:
                with stage(notes(), f"running real steps: {label}"):
                    measured[plan.key] = TrainStep(prepared, plan).measure()
            points.append(_point(label, kind, plan, measured.get(plan.key)))
    points.append(_eager_point(prepared, next(iter(measured.values()), None)))
    return Tradeoff(
        title=request.subject.title,
        resident_bytes=prepared.resident_bytes,
        eager_peak_bytes=prepared.eager_peak_bytes,
        points=tuple(points),
        infeasible=infeasible,
        plans=ladder,
    )


def parse_budgets(text: str) -> dict[str, Budget]:
    """The ladder by label; bare numbers are per cent.

    Raises:
        ConfigError: An entry that is no budget, or none at all.

    >>> list(parse_budgets("100, 40%, 96 MiB"))
    ['100%', '40%', '96 MiB']
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    labels = [f"{entry}%" if entry.replace(".", "", 1).isdigit() else entry for entry in entries]
    problems: list[str] = [] if labels else ['--budgets must name at least one budget, like "100,60,40"']
    budgets = {label: attempt(problems, lambda label=label: parse_budget(label)) for label in labels}  # type: ignore[misc]
    if problems:
        raise ConfigError(problems)
    return {label: budget for label, budget in budgets.items() if budget is not None}


def _ladder(
    prepared: PreparedStep, budgets: dict[str, Budget], search: Search
) -> tuple[dict[str, Plan], tuple[str, ...]]:
    """Plans by label, largest budget first, down to the smallest peak that these options reach."""
    sizes = {
        label: budget.resolve_bytes(resident_bytes=prepared.resident_bytes, eager_peak_bytes=prepared.eager_peak_bytes)
        for label, budget in budgets.items()
    }
    plans: dict[str, Plan] = {}
    infeasible = []
    needed_bytes = sys.maxsize
    for label in sorted(sizes, key=lambda label: -sizes[label]):
        try:
            plans[label] = search.plan(prepared, sizes[label])
        except InfeasibleBudgetError as error:
            infeasible.append(label)
            needed_bytes = min(needed_bytes, error.needed_bytes)
    if not infeasible:
        try:
            plans["smallest"] = search.plan(prepared, prepared.resident_bytes + 1)
        except InfeasibleBudgetError as error:
            needed_bytes = error.needed_bytes
    if needed_bytes < min((plan.peak_bytes for plan in plans.values()), default=sys.maxsize):
        with suppress(InfeasibleBudgetError):  # a solver may miss what it has reached before
            plans["smallest"] = search.plan(prepared, needed_bytes)
    return dict(zip(plans, monotone(list(plans.values())), strict=True)), tuple(infeasible)


def _point(label: str, kind: str, plan: Plan, measured: Measurement | None) -> TradePoint:
    return TradePoint(
        label=label,
        kind=kind,
        budget_bytes=plan.budget_bytes if kind == "plan" else None,
        peak_bytes=plan.peak_bytes,
        extra_time_s=plan.extra_time_s,
        bound_extra_time_s=plan.bound_extra_time_s if kind == "plan" else None,
        step_time_s=plan.step_time_s,
        gradient_error=plan.gradient_error,
        solver=plan.solver,
        measured_peak_bytes=None if measured is None else measured.peak_bytes,
        time_ratio=None if measured is None else measured.time_ratio,
    )


def _eager_point(prepared: PreparedStep, measured: Measurement | None) -> TradePoint:
    return TradePoint(
        label="PyTorch eager",
        kind="eager",
        budget_bytes=None,
        peak_bytes=prepared.eager_peak_bytes,
        extra_time_s=None,
        bound_extra_time_s=None,
        step_time_s=None,
        gradient_error=0.0,
        solver="eager",
        measured_peak_bytes=None if measured is None else measured.eager_peak_bytes,
        time_ratio=None if measured is None else 1.0,
    )
