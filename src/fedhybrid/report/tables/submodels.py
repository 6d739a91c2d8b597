"""What of the model each tier trained, where a method does not give everybody the whole."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from fedhybrid.records import COMPLETED, ClientRecord
from fedhybrid.report.facts import tier_order
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tables.base import Table, or_none
from fedhybrid.report.text import duration, mib

__all__ = ["submodels_table"]

_SHOWN = 6  # of each run and tier; a method may name a new one every round
_OTHERS = "all others"


def submodels_table(runs: Runs) -> Table | None:
    """Tasks by tier and submodel; None where every task trained the whole model."""
    told = {label: run for label, run in runs.items() if any(task.submodel for task in run.clients)}
    rows = [
        _row(label, tier, name, tasks)
        for label, run in told.items()
        for tier in tier_order(runs)
        for name, tasks in _by_submodel(run, tier).items()
    ]
    heads = ("run", "tier", "submodel", "tasks", "clients", "largest measured peak", "median task", "median upload")
    note = "What the method had each tier train: names are the method's own; tasks that were completed."
    return Table(heads=heads, rows=tuple(rows), left=3, note=note) if rows else None


def _by_submodel(run: RunRecords, tier: str) -> dict[str, list[ClientRecord]]:
    """The completed tasks of a tier, those of the most frequent submodels apart."""
    own = [task for task in run.clients if task.tier == tier and task.outcome == COMPLETED and task.kind == "train"]
    frequent = [name for name, _ in Counter(task.submodel for task in own).most_common(_SHOWN)]
    found = {name or "the whole": [task for task in own if task.submodel == name] for name in frequent}
    others = [task for task in own if task.submodel not in frequent]
    return found | ({_OTHERS: others} if others else {})


def _row(label: str, tier: str, name: str, tasks: Sequence[ClientRecord]) -> tuple[str, ...]:
    peaks = [task.measured_peak_bytes for task in tasks if task.measured_peak_bytes is not None]
    return (
        label,
        tier,
        name,
        f"{len(tasks):,}",
        f"{len({task.client for task in tasks}):,}",
        or_none(max(peaks, default=None), mib),
        duration(statistics.median(task.virtual_time_s for task in tasks)),
        mib(statistics.median(task.bytes_up for task in tasks), 2),
    )
