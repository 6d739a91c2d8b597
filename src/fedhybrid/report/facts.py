"""Numbers that follow from a run's records: who took part, what was measured, when a target was met."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from fedhybrid.records import COMPLETED, ClientRecord
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.units import parse_budget

__all__ = [
    "Gap",
    "TierFacts",
    "TightPlan",
    "accuracy_targets",
    "clients_reached",
    "closest_tasks",
    "failed_tasks",
    "fleet_size",
    "largest_gap",
    "measured_tasks",
    "step_bytes",
    "tier_order",
    "tiers_of",
    "tightest_plan",
    "time_to_accuracy_s",
    "violations",
]


@dataclass(frozen=True, kw_only=True)
class TierFacts:
    """One budget tier in one run. `clients` (in the fleet) is None where the run has no summary yet."""

    name: str
    budget_bytes: int | None
    clients: int | None
    reached: int
    tasks: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The task whose measured peak is farthest from the planned one. `gap_ratio` is relative to the measured peak."""

    task: ClientRecord
    gap_bytes: int
    gap_ratio: float


def measured_tasks(run: RunRecords) -> list[ClientRecord]:
    """Tasks whose peak was measured."""
    return [task for task in run.clients if task.measured_peak_bytes is not None]


def failed_tasks(run: RunRecords) -> list[ClientRecord]:
    """Tasks that ended without an update."""
    return [task for task in run.clients if task.outcome != COMPLETED]


def violations(run: RunRecords) -> list[ClientRecord]:
    """Tasks whose measured peak exceeds their budget."""
    return [task for task in measured_tasks(run) if (task.measured_peak_bytes or 0) > task.budget_bytes]


def largest_gap(run: RunRecords) -> Gap | None:
    """Where planned and measured peak differ most; None where no task has both."""
    gaps = [
        Gap(
            task=task,
            gap_bytes=abs(task.planned_peak_bytes - measured),
            gap_ratio=abs(task.planned_peak_bytes - measured) / measured,
        )
        for task in run.clients
        if task.planned_peak_bytes is not None and (measured := task.measured_peak_bytes)
    ]
    return max(gaps, key=lambda gap: gap.gap_ratio, default=None)


def closest_tasks(run: RunRecords) -> dict[int, ClientRecord]:
    """Of each client that took part, the measured task that came closest to its budget, else its last one."""
    closest: dict[int, ClientRecord] = {}
    for task in run.clients:
        if task.client not in closest or _nearness(task) >= _nearness(closest[task.client]):
            closest[task.client] = task
    return closest


def _nearness(task: ClientRecord) -> float:
    return -1.0 if task.measured_peak_bytes is None else task.measured_peak_bytes / task.budget_bytes


def clients_reached(run: RunRecords) -> int:
    """Distinct clients that completed a task."""
    return len({task.client for task in run.clients if task.outcome == COMPLETED})


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
    """Participation of each tier of one run, counted from its tasks."""
    fleet = run.summary.participation if run.summary else {}
    facts: dict[str, TierFacts] = {}
    for tier in _tier_names(run):
        tasks = [task for task in run.clients if task.tier == tier]
        done = [task for task in tasks if task.outcome == COMPLETED]
        facts[tier] = TierFacts(
            name=tier,
            budget_bytes=_tier_budget_bytes(run, tier),
            clients=fleet[tier]["clients"] if tier in fleet else None,
            reached=len({task.client for task in done}),
            tasks=len(done),
            failed=len(tasks) - len(done),
        )
    return facts


def _tier_names(run: RunRecords) -> list[str]:
    named = list(run.summary.participation) if run.summary else []
    return list(dict.fromkeys([*named, *_configured_tiers(run), *(task.tier for task in run.clients)]))


def _configured_tiers(run: RunRecords) -> dict[str, dict[str, Any]]:
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
    return next((r.virtual_time_s for r in run.rounds if r.accuracy >= target_ratio), None)


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
    tasks = [task for task in run.clients if task.plan == name]
    measured = [task.measured_peak_bytes for task in tasks if task.measured_peak_bytes is not None]
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
