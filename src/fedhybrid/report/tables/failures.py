"""What went wrong, or nearly: failures by kind, steps short of memory, moves along the ladder of plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fedhybrid.records import COMPLETED, ClientRecord
from fedhybrid.report.load import Runs
from fedhybrid.report.tables.base import NONE, Table
from fedhybrid.report.tasks import failure_counts, training_tasks, words

__all__ = ["failures_table", "trouble_table"]

_LISTED_FAILURES = 50

# What else can be wrong with a task, and of how many steps, moves or tasks it tells.
_OTHER: dict[str, Callable[[ClientRecord], int]] = {
    "Tests on devices that failed": lambda task: task.kind == "evaluate" and task.outcome != COMPLETED,
    "Steps for which a device had too little memory": lambda task: task.violations,
    "Moves along the ladder of plans": lambda task: task.switches,
}


def trouble_table(runs: Runs) -> Table | None:
    """One column a run: failures by kind, the most frequent first, then memory; None where there is nothing to say."""
    counts = {label: failure_counts(run) for label, run in runs.items()}
    kinds: Counter[str] = sum(counts.values(), start=Counter())
    rows = [(words(kind), *(f"{found[kind]:,}" for found in counts.values())) for kind, _ in kinds.most_common()]
    if rows:
        given = [len(training_tasks(run)) for run in runs.values()]
        totals = (f"{found.total():,} of {all_:,}" for found, all_ in zip(counts.values(), given, strict=True))
        rows.insert(0, ("Tasks that failed", *totals))
    for name, amount in _OTHER.items():
        cells = [sum(map(amount, run.clients)) for run in runs.values()]
        if any(cells):
            rows.append((name, *(f"{cell:,}" for cell in cells)))
    return Table(heads=("", *runs), rows=tuple(rows)) if rows else None


def failures_table(runs: Runs) -> Table | None:
    """Tasks that failed, by run, tier and reason, the most frequent first."""
    groups: dict[tuple[str, str, str, str], list[ClientRecord]] = {}
    for label, run in runs.items():
        for task in run.clients:
            if task.outcome != COMPLETED:
                groups.setdefault((label, task.tier, task.outcome, task.kind), []).append(task)
    if not groups:
        return None
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows = [
        (
            label,
            tier,
            words(outcome) + ("" if kind == "train" else f" ({kind})"),
            tasks[0].detail or NONE,
            f"{len(tasks):,}",
            f"{len({task.client for task in tasks}):,}",
            f"{tasks[0].round}",
        )
        for (label, tier, outcome, kind), tasks in ordered[:_LISTED_FAILURES]
    ]
    left_out = len(ordered) - len(rows)
    note = f"{left_out} rarer kinds of failure are left out; clients.jsonl has every task." if left_out else ""
    heads = ("run", "tier", "why", "detail of the first", "tasks", "devices", "first in round")
    return Table(heads=heads, rows=tuple(rows), left=4, note=note)
