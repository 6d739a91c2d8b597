"""Whom training reached and whom the model serves, tier by tier and for the tenth that it serves worst."""

from __future__ import annotations

from fedhybrid.report.facts import TierFacts, tier_order, tiers_of
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tables.base import NONE, Table, or_none
from fedhybrid.report.tasks import training_tasks
from fedhybrid.report.text import percent

__all__ = ["fairness_table"]


def fairness_table(runs: Runs) -> Table | None:
    """Participation beside accuracy; None before any run has a summary that tells the latter."""
    told = {label: run for label, run in runs.items() if run.summary and run.summary.accuracy_by_tier}
    if not told:
        return None
    rows: list[tuple[str, ...]] = []
    for label, run in told.items():
        facts = tiers_of(run)
        rows += [_tier(label, run, facts[tier]) for tier in tier_order(runs) if tier in facts]
        if run.summary and run.summary.worst_tenth_accuracy is not None:
            worst = percent(run.summary.worst_tenth_accuracy)
            rows.append((label, "worst tenth of all", *[NONE] * 5, worst))
    heads = ("run", "tier", "devices", "reached", "tasks completed", "failed", "too little memory", "accuracy")
    keep = [i for i in range(len(heads)) if i < 2 or any(row[i] not in {"0", NONE} for row in rows)]
    return Table(
        heads=tuple(heads[i] for i in keep),
        rows=tuple(tuple(row[i] for i in keep) for row in rows),
        left=2,
        note=(
            "Accuracy is the final model's on test data like each device's own, as a mean over devices; the worst "
            f"tenth are the devices that it serves worst ({_asked(told)} devices in all)."
            + (" Too little memory: steps for which a device had less left than they need." if 6 in keep else "")
        ),
    )


def _tier(label: str, run: RunRecords, tier: TierFacts) -> tuple[str, ...]:
    short = sum(task.violations for task in training_tasks(run) if task.tier == tier.name)
    return (
        label,
        tier.name,
        or_none(tier.clients, "{:,}".format),
        f"{tier.reached:,}",
        f"{tier.tasks:,}",
        f"{tier.failed:,}",
        f"{short:,}",
        or_none(tier.accuracy, percent),
    )


def _asked(runs: Runs) -> str:
    counts = sorted({run.summary.fairness_clients for run in runs.values() if run.summary})
    return " or ".join(f"{count:,}" for count in counts)
