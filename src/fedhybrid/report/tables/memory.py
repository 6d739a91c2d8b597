"""Memory in numbers: budgets and peaks by tier, and every plan."""

from __future__ import annotations

from typing import Any

from fedhybrid.report.facts import tier_order, tiers_of
from fedhybrid.report.load import Runs
from fedhybrid.report.tables.base import NONE, Table, or_none
from fedhybrid.report.tasks import closest_tasks, measured_tasks, training_tasks
from fedhybrid.report.text import mib, percent

__all__ = ["memory_table", "plans_table"]


def memory_table(runs: Runs) -> Table | None:
    """Budget, planned and measured peak by tier: of each tier, the task that came closest to its budget."""
    rows = []
    for label, run in runs.items():
        closest, facts = closest_tasks(run), tiers_of(run)
        for tier in tier_order(runs):
            if tier not in facts:
                continue
            tasks = [t for t in closest.values() if t.tier == tier and t.measured_peak_bytes is not None]
            worst = max(tasks, key=lambda t: (t.measured_peak_bytes or 0) / t.budget_bytes, default=None)
            all_tasks = [t for t in measured_tasks(run) if t.tier == tier and t.kind != "evaluate"]
            rows.append(
                (
                    label,
                    tier,
                    ", ".join(sorted({t.device for t in run.clients if t.tier == tier})) or NONE,
                    or_none(worst.budget_bytes if worst else facts[tier].budget_bytes, mib),
                    *(
                        (or_none(worst.planned_peak_bytes, mib), or_none(worst.measured_peak_bytes, mib))
                        if worst
                        else (NONE, NONE)
                    ),
                    percent((worst.measured_peak_bytes or 0) / worst.budget_bytes, 2) if worst else NONE,
                    f"{len(all_tasks):,}",
                )
            )
    heads = ("run", "tier", "device", "budget", "planned peak", "measured peak", "of budget", "tasks measured")
    note = "Of each tier, the task whose measured peak came closest to its budget."
    return Table(heads=heads, rows=tuple(rows), left=3, note=note) if rows else None


def plans_table(runs: Runs) -> Table | None:
    """Every plan of every run, the tightest first."""
    rows = []
    for label, run in runs.items():
        for name, plan in sorted(run.plans.items(), key=lambda item: item[1].get("peak_bytes", 0)):
            tasks = [task for task in training_tasks(run) if task.plan == name]
            stayed = [task for task in tasks if not task.switches]  # the others' peaks may be another plan's
            measured = [t.measured_peak_bytes for t in stayed if t.measured_peak_bytes is not None]
            rows.append(
                (
                    label,
                    name,
                    str(plan.get("solver", NONE)),
                    or_none(min((task.budget_bytes for task in tasks), default=None), mib),
                    or_none(plan.get("peak_bytes"), mib),
                    or_none(max(measured, default=None), mib),
                    or_none(plan.get("eager_peak_bytes"), mib),
                    _extra(plan),
                    f"{len(tasks):,}",
                )
            )
    heads = (
        "run",
        "plan",
        "solver",
        "budget",
        "planned peak",
        "measured peak",
        "peak in PyTorch eager",
        "extra time (planned)",
        "tasks",
    )
    return Table(heads=heads, rows=tuple(rows), left=3) if rows else None


def _extra(plan: dict[str, Any]) -> str:
    step_s, extra_s = plan.get("step_time_s"), plan.get("extra_time_s")
    if not step_s or extra_s is None or step_s <= extra_s:
        return NONE
    return "+" + percent(extra_s / (step_s - extra_s))
