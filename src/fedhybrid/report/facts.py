"""Numbers that follow from a run's records: its tiers, when a target was met, its tightest plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from fedhybrid.engine.plannames import is_stand_in
from fedhybrid.records import COMPLETED
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tasks import training_tasks
from fedhybrid.units import parse_budget

__all__ = [
    "CurvePoint",
    "TierFacts",
    "TightPlan",
    "accuracy_curve",
    "accuracy_targets",
    "clock_words",
    "fleet_size",
    "is_deployed",
    "solver_of",
    "stand_in_tiers",
    "step_bytes",
    "tier_order",
    "tiers_of",
    "tightest_plan",
    "time_to_accuracy_s",
]


@dataclass(frozen=True, kw_only=True)
class TierFacts:
    """One budget tier in one run.

    `clients` (in the fleet) and `accuracy` (of the final model on data like its clients' own) are None where the run
    has no summary yet; the latter also where no client of the tier could be asked.
    """

    name: str
    budget_bytes: int | None
    clients: int | None
    reached: int
    tasks: int
    failed: int
    accuracy: float | None


class CurvePoint(NamedTuple):
    """The model on the test set at the end of one round."""

    virtual_time_s: float
    accuracy: float


def accuracy_curve(run: RunRecords) -> list[CurvePoint]:
    """The rounds that were tested, in order."""
    return [CurvePoint(r.virtual_time_s, r.accuracy) for r in run.rounds if r.accuracy is not None]


def fleet_size(run: RunRecords) -> int | None:
    """Devices in the fleet, as far as the records say."""
    return run.summary.clients if run.summary else None


def step_bytes(run: RunRecords) -> tuple[int, int] | None:
    """Resident bytes and eager peak of the run's training step, from the summary or else from a plan."""
    if run.summary:
        return run.summary.resident_bytes, run.summary.eager_peak_bytes
    for plan in run.plans.values():
        if "resident_bytes" in plan and "eager_peak_bytes" in plan:
            return plan["resident_bytes"], plan["eager_peak_bytes"]
    return None


def tier_order(runs: Runs) -> list[str]:
    """Every tier of every run, the smallest budget first; tiers whose budget nothing tells come last."""
    known: dict[str, float] = {}
    for run in runs.values():
        for tier in _tier_names(run):
            budget = _tier_budget_bytes(run, tier)
            known[tier] = min(known.get(tier, math.inf), math.inf if budget is None else budget)
    return sorted(known, key=lambda tier: (known[tier], tier))


def tiers_of(run: RunRecords) -> dict[str, TierFacts]:
    """Participation of each tier of one run, counted from its training tasks."""
    fleet = run.summary.participation if run.summary else {}
    accuracies = run.summary.accuracy_by_tier if run.summary else {}
    facts: dict[str, TierFacts] = {}
    for tier in _tier_names(run):
        tasks = [task for task in training_tasks(run) if task.tier == tier]
        done = [task for task in tasks if task.outcome == COMPLETED]
        facts[tier] = TierFacts(
            name=tier,
            budget_bytes=_tier_budget_bytes(run, tier),
            clients=fleet[tier]["clients"] if tier in fleet else None,
            reached=len({task.client for task in done}),
            tasks=len(done),
            failed=len(tasks) - len(done),
            accuracy=accuracies.get(tier),
        )
    return facts


def _tier_names(run: RunRecords) -> list[str]:
    named = list(run.summary.participation) if run.summary else []
    return list(dict.fromkeys([*named, *_configured_tiers(run), *(task.tier for task in run.clients)]))


def is_deployed(run: RunRecords) -> bool:
    """Whether real devices trained, in real time; an unfinished run has no summary to say so, but a list of nodes."""
    return run.summary.clock == "real" if run.summary else (run.folder / "nodes.json").is_file()


def solver_of(run: RunRecords) -> str:
    """Whom the recipe asks for plans; "auto" lets the planner choose."""
    return str(run.config.get("planner", {}).get("solver", "auto"))


def stand_in_tiers(run: RunRecords) -> tuple[str, ...]:
    """Tiers in which the solver that the recipe names found no plan, so that another stood in; none with "auto"."""
    if solver_of(run) == "auto":
        return ()
    used = {task.tier for task in run.clients if task.plan is not None and is_stand_in(task.plan)}
    return tuple(tier for tier in _tier_names(run) if tier in used)


def clock_words(runs: Runs) -> str:
    """What seconds are called where these runs are shown together."""
    return "real time" if all(is_deployed(run) for run in runs.values()) else "virtual time"


def _configured_tiers(run: RunRecords) -> dict[str, dict[str, Any]]:
    if is_deployed(run):
        return {}  # nodes say themselves what they are
    return {tier["name"]: tier for tier in run.config.get("fleet", {}).get("tiers", []) if "name" in tier}


def _tier_budget_bytes(run: RunRecords, tier: str) -> int | None:
    """The median over the tier's tasks (budgets may move), else what the configuration says."""
    budgets = [task.budget_bytes for task in run.clients if task.tier == tier]
    if budgets:
        return int(median(budgets))
    table, step = _configured_tiers(run).get(tier, {}), step_bytes(run)
    if "budget" not in table or step is None:
        return None
    return parse_budget(table["budget"]).resolve_bytes(resident_bytes=step[0], eager_peak_bytes=step[1])


def accuracy_targets(runs: Runs) -> list[float]:
    """Targets that at least one run has met, ascending: those of the summaries, before the first summary round ones."""
    named = {target for run in runs.values() if run.summary for target in run.summary.time_to_accuracy_s}
    named = named or {"0.5", "0.6", "0.7", "0.8", "0.9"}
    met = {
        float(target)
        for target in named
        if any(time_to_accuracy_s(run, float(target)) is not None for run in runs.values())
    }
    return sorted(met)


def time_to_accuracy_s(run: RunRecords, target_ratio: float) -> float | None:
    """Virtual time at the end of the first round whose test accuracy is at least the target."""
    return next((test.virtual_time_s for test in accuracy_curve(run) if test.accuracy >= target_ratio), None)


@dataclass(frozen=True, kw_only=True)
class TightPlan:
    """A plan with its run, the smallest budget that it served, and the largest peak measured with it, if any.

    A plan that stands alone may bring its own `budget_bytes` and `measured_peak_bytes`.
    """

    label: str
    name: str
    plan: dict[str, Any]
    budget_bytes: int | None
    measured_peak_bytes: int | None


def tightest_plan(runs: Runs) -> TightPlan | None:
    """Among plans with timelines the one with the smallest planned peak relative to the unplanned one.

    Plans that some task ran come before plans that none did, because only they have been measured.
    """
    found = [
        _tight(label, run, name, plan)
        for label, run in runs.items()
        for name, plan in run.plans.items()
        if {"planned", "eager"} <= plan.get("timelines", {}).keys()
    ]
    return min(found, key=_tightness, default=None)


def _tight(label: str, run: RunRecords, name: str, plan: dict[str, Any]) -> TightPlan:
    tasks = [task for task in training_tasks(run) if task.plan == name]
    stayed = [task for task in tasks if not task.switches]  # the others' peaks may be another plan's
    measured = [task.measured_peak_bytes for task in stayed if task.measured_peak_bytes is not None]
    return TightPlan(
        label=label,
        name=name,
        plan=plan,
        budget_bytes=min((task.budget_bytes for task in tasks), default=plan.get("budget_bytes")),
        measured_peak_bytes=max(measured, default=plan.get("measured_peak_bytes")),
    )


def _tightness(tight: TightPlan) -> tuple[bool, float, str, str]:
    ratio = tight.plan["peak_bytes"] / tight.plan["eager_peak_bytes"]
    return tight.measured_peak_bytes is None, ratio, tight.label, tight.name
