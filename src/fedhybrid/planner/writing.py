"""From a solver's solution to a plan, and from a plan back to decisions about a step."""

from __future__ import annotations

from fedhybrid.errors import ConfigError
from fedhybrid.graph import Role
from fedhybrid.planner.plan import OPTIONS, CallDecision, Plan, TensorDecision
from fedhybrid.planner.problem import FIRST_PACK, Kind, PlanOp, Problem
from fedhybrid.planner.schedule import build_schedule
from fedhybrid.planner.solvers.base import Decisions, Solution

__all__ = ["describe_peak", "make_plan", "plan_decisions"]

_ACTIONS = {option: action for action, option in OPTIONS.items()}


def make_plan(
    problem: Problem, solution: Solution, *, fingerprint: str, budget_bytes: int | None, solver: str, threads: int
) -> Plan:
    """Writes a solution down."""
    keep_all, schedule = build_schedule(problem, {}), solution.schedule
    resident = problem.resident_bytes
    return Plan(
        fingerprint=fingerprint,
        budget_bytes=budget_bytes,
        resident_bytes=resident,
        eager_peak_bytes=resident + problem.eager_peak_bytes,
        keep_all_peak_bytes=resident + keep_all.peak_bytes,
        peak_bytes=resident + schedule.peak_bytes,
        peak_op=describe_peak(problem, solution),
        step_time_s=problem.seconds + solution.extra_seconds,
        extra_time_s=solution.extra_seconds,
        bound_extra_time_s=solution.bound_seconds,
        gradient_error=solution.gradient_error,
        solver=solver,
        threads=threads,
        decisions=tuple(
            TensorDecision(
                storage=s,
                tensor=problem.graph.storages[s].name,
                action=_action(problem, s, option),
                nbytes=problem.nbytes[s],
            )
            for s, option in sorted(solution.decisions.items())
            if s < len(problem.nbytes)
        ),
        splits=_call_decisions(problem, solution.decisions),
        timelines={
            "eager": [resident + b for b in problem.eager_timeline],
            "keep_all": [resident + b for b in keep_all.tops],
            "planned": [resident + b for b in schedule.tops],
        },
        timeline_marks={
            "eager": {"backward_at": problem.eager_backward_at},
            "keep_all": {"backward_at": keep_all.backward_at},
            "planned": {"backward_at": schedule.backward_at},
        },
    )


def _action(problem: Problem, storage: int, option: int) -> str:
    if option < FIRST_PACK:
        return _ACTIONS[option]
    return "encode:" + next(p.codec for p in problem.packs if (p.storage, p.option) == (storage, option))


def _call_decisions(problem: Problem, decisions: Decisions) -> tuple[CallDecision, ...]:
    found = []
    for subject, option in sorted(decisions.items()):
        if subject >= len(problem.nbytes):
            call = problem.calls[subject - len(problem.nbytes)]
            form = call.forms[option]
            name = problem.graph.ops[call.op].name
            replay = call.kind is Kind.REPLAY
            found.append(CallDecision(op=call.op, replay=replay, name=name, chunks=form.chunks, exact=form.exact))
    return tuple(found)


def plan_decisions(problem: Problem, plan: Plan) -> Decisions:
    """The plan's decisions for this problem.

    Raises:
        ConfigError: The plan asks for something that cannot be done with this step here; all such things at once.
    """
    problems: list[str] = []
    found: Decisions = {}
    packs = {(p.storage, f"encode:{p.codec}"): p.option for p in problem.packs}
    for d in plan.decisions:
        if d.action in OPTIONS and d.storage in problem.replays and d.storage in problem.uses:
            found[d.storage] = OPTIONS[d.action]
        elif (d.storage, d.action) in packs:
            found[d.storage] = packs[d.storage, d.action]
        else:
            problems.append(
                f"the plan wants {d.action!r} for storage {d.storage}, which this step cannot do; plan again"
            )
    calls: dict[tuple[int, bool], list[PlanOp]] = {}
    for call in problem.calls:
        if call.kind in (Kind.OP, Kind.REPLAY):
            calls.setdefault((call.op, call.kind is Kind.REPLAY), []).append(call)
    for split in plan.splits:
        for call in calls.get((split.op, split.replay), []):
            option = next((i for i, form in enumerate(call.forms) if i and form.chunks == split.chunks), 0)
            found[problem.subject_of(call)] = option
            if not option:
                problems.append(f"the plan runs {split.name!r} in {split.chunks} chunks; here it cannot be; plan again")
    if problems:
        raise ConfigError(problems)
    return found


def describe_peak(problem: Problem, solution: Solution) -> str:
    """The operator at a solution's peak, with the parameters that it reads: what a person can find in the model."""
    step = solution.schedule.steps[solution.schedule.peak_at]
    graph = problem.graph
    if step.kind is Kind.UPDATE:
        return f"optimizer update of {graph.storages[problem.updates[step.call].param].name}"
    if step.kind in (Kind.ENCODE, Kind.DECODE):
        pack = problem.packs[step.call]
        return f"{step.kind.name.lower()} ({pack.codec}) of {graph.storages[pack.storage].name}"
    op = graph.ops[step.call]
    owners = [graph.storages[graph.storage_of(v)] for v in op.inputs]
    names = [owner.name for owner in owners if owner.role is Role.PARAM]
    return op.name + (f" (of {', '.join(names)})" if names else "")
