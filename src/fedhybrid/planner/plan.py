"""A plan: what a solver decided, what it promises, and enough to run it elsewhere. Plain data, JSON in and out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from fedhybrid.errors import ConfigError
from fedhybrid.graph import Role
from fedhybrid.planner.problem import Problem
from fedhybrid.planner.schedule import Decision, build_schedule
from fedhybrid.planner.solvers.base import Decisions, Solution

__all__ = ["Plan", "TensorDecision", "describe_peak", "make_plan", "plan_decisions"]

_VERSION = 1
_ACTIONS = {Decision.RECOMPUTE: "recompute", Decision.TRANSIENT: "recompute-transient"}
_DECISIONS = {action: decision for decision, action in _ACTIONS.items()}


@dataclass(frozen=True, kw_only=True)
class TensorDecision:
    """One storage that is not simply kept. `storage` numbers it in the graph; `tensor` is for people."""

    storage: int
    tensor: str
    action: str
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do with each tensor, and the promise that comes with it.

    Attributes:
        fingerprint: Of the graph that the plan belongs to; independent of names.
        budget_bytes: What was asked for, resident bytes included; None for a plan without a budget.
        resident_bytes: Parameters, buffers, optimizer state and batch (R).
        eager_peak_bytes: Peak of the same step in PyTorch eager (R + A).
        keep_all_peak_bytes: Peak of the captured program without any decision.
        peak_bytes: Peak of this plan; what `TrainStep.measure` measures.
        peak_op: The operator at the peak.
        step_time_s: Predicted seconds of a step under the costs that the plan was made with.
        extra_time_s: How much of it is recomputation.
        bound_extra_time_s: A proven lower bound of `extra_time_s` over all plans within the budget.
        gradient_error: Predicted relative L2 error of the gradient; 0 for plans without lossy actions.
        solver: Which solver found it.
        threads: Intra-op threads that the workspace was measured with.
        timelines: Bytes live at the worst moment of each call, resident included, for "eager", "keep_all", "planned".
        timeline_marks: For each timeline, `backward_at`: where its backward pass starts.
    """

    fingerprint: str
    budget_bytes: int | None
    resident_bytes: int
    eager_peak_bytes: int
    keep_all_peak_bytes: int
    peak_bytes: int
    peak_op: str
    step_time_s: float
    extra_time_s: float
    bound_extra_time_s: float
    gradient_error: float
    solver: str
    threads: int
    decisions: tuple[TensorDecision, ...]
    timelines: dict[str, list[int]]
    timeline_marks: dict[str, dict[str, int]]
    version: int = _VERSION

    def to_json(self) -> str:
        """The plan as JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan again.

        Raises:
            ConfigError: Not JSON, another version, or missing, unknown or wrong fields (all named).
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"a plan must be JSON: {error}") from error
        problems = _problems(raw)
        if problems:
            raise ConfigError(problems)
        raw["decisions"] = tuple(TensorDecision(**d) for d in raw["decisions"])
        return cls(**raw)

    @property
    def recomputed_bytes(self) -> int:
        """Bytes of the storages that are dropped and made again."""
        return sum(d.nbytes for d in self.decisions)


def _problems(raw: Any) -> list[str]:
    """Every fault of a decoded plan file."""
    if not isinstance(raw, dict):
        return [f"a plan must be a JSON object, got {type(raw).__name__}"]
    if raw.get("version") != _VERSION:
        return [f"this plan has version {raw.get('version')!r}; this fedhybrid reads version {_VERSION}: plan again"]
    wanted = {field.name: str(field.type) for field in dataclasses.fields(Plan)}
    found = [f"plan: {key!r} is missing" for key in wanted if key not in raw]
    found += [f"plan: unknown key {key!r}" for key in raw if key not in wanted]
    accepted: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "int | None": (int, type(None)),
        "float": (int, float),
    }
    for key, kind in wanted.items():
        if key in raw and kind in accepted and (not isinstance(raw[key], accepted[kind]) or isinstance(raw[key], bool)):
            found.append(f"plan: {key!r} must be {kind}, got {raw[key]!r}")
    if not isinstance(raw.get("decisions", []), list):
        found.append("plan: 'decisions' must be a list")
    else:
        for number, entry in enumerate(raw.get("decisions", [])):
            found += _decision_problems(number, entry)
    for key in ("timelines", "timeline_marks"):
        if not isinstance(raw.get(key, {}), dict):
            found.append(f"plan: {key!r} must be an object")
    return found


def _decision_problems(number: int, entry: Any) -> list[str]:
    fields = {field.name for field in dataclasses.fields(TensorDecision)}
    if not isinstance(entry, dict) or set(entry) != fields:
        return [f"plan: decision {number} must have exactly the keys {sorted(fields)}"]
    found = []
    if entry["action"] not in _DECISIONS:
        found.append(f"plan: decision {number} has unknown action {entry['action']!r}; known: {', '.join(_DECISIONS)}")
    if not isinstance(entry["storage"], int) or isinstance(entry["storage"], bool):
        found.append(f"plan: decision {number} must have a whole number as storage, got {entry['storage']!r}")
    return found


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
        bound_extra_time_s=0.0,
        gradient_error=0.0,
        solver=solver,
        threads=threads,
        decisions=tuple(
            TensorDecision(
                storage=s, tensor=problem.graph.storages[s].name, action=_ACTIONS[d], nbytes=problem.nbytes[s]
            )
            for s, d in sorted(solution.decisions.items())
        ),
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


def plan_decisions(problem: Problem, plan: Plan) -> Decisions:
    """The plan's decisions for this problem.

    Raises:
        ConfigError: The plan names a storage that cannot be made again.
    """
    strange = [d.storage for d in plan.decisions if d.storage not in problem.replays]
    if strange:
        raise ConfigError(f"the plan recomputes storages that this step cannot make again: {strange}; plan again")
    return {d.storage: _DECISIONS[d.action] for d in plan.decisions}


def describe_peak(problem: Problem, solution: Solution) -> str:
    """The operator at a solution's peak, with the parameters that it reads: what a person can find in the model."""
    step = solution.schedule.steps[solution.schedule.peak_at]
    graph = problem.graph
    if step.kind.name == "UPDATE":
        return f"optimizer update of {graph.storages[problem.updates[step.call].param].name}"
    op = graph.ops[step.call]
    owners = [graph.storages[graph.storage_of(v)] for v in op.inputs]
    names = [owner.name for owner in owners if owner.role is Role.PARAM]
    return op.name + (f" (of {', '.join(names)})" if names else "")
