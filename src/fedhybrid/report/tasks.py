"""Which tasks of a run count for what: training and tests, what was measured, what failed, what was stale."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fedhybrid.records import COMPLETED, ClientRecord
from fedhybrid.report.load import RunRecords, Runs

__all__ = [
    "Gap",
    "clients_reached",
    "closest_tasks",
    "failed_tasks",
    "failure_counts",
    "is_asynchronous",
    "largest_gap",
    "measured_tasks",
    "schedule_of",
    "stale_runs",
    "training_tasks",
    "violations",
    "words",
]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The task whose measured peak is farthest from the planned one. `gap_ratio` is relative to the measured peak."""

    task: ClientRecord
    gap_bytes: int
    gap_ratio: float


def words(outcome: str) -> str:
    """A kind of failure as people write it.

    >>> words("out_of_memory")
    'out of memory'
    """
    return outcome.replace("_", " ")


def training_tasks(run: RunRecords) -> list[ClientRecord]:
    """All tasks but those that test the model on a client's data, or are asked for so that it can be tested."""
    return [task for task in run.clients if task.kind not in ("evaluate", "close")]


def measured_tasks(run: RunRecords) -> list[ClientRecord]:
    """Tasks whose peak was measured, of whatever kind: a test has to stay inside the budget too."""
    return [task for task in run.clients if task.measured_peak_bytes is not None]


def failed_tasks(run: RunRecords) -> list[ClientRecord]:
    """Training tasks that ended without an update."""
    return [task for task in training_tasks(run) if task.outcome != COMPLETED]


def failure_counts(run: RunRecords) -> Counter[str]:
    """How many training tasks ended in each kind of failure."""
    return Counter(task.outcome for task in failed_tasks(run))


def violations(run: RunRecords) -> list[ClientRecord]:
    """Tasks whose measured peak exceeds their budget."""
    return [task for task in measured_tasks(run) if (task.measured_peak_bytes or 0) > task.budget_bytes]


def largest_gap(run: RunRecords) -> Gap | None:
    """Where planned and measured peak of training differ most; None where no task has both."""
    gaps = [
        Gap(
            task=task,
            gap_bytes=abs(task.planned_peak_bytes - measured),
            gap_ratio=abs(task.planned_peak_bytes - measured) / measured,
        )
        for task in training_tasks(run)
        if task.planned_peak_bytes is not None and (measured := task.measured_peak_bytes)
    ]
    return max(gaps, key=lambda gap: gap.gap_ratio, default=None)


def closest_tasks(run: RunRecords) -> dict[int, ClientRecord]:
    """Of each client that trained, the measured task that came closest to its budget, else its last one."""
    closest: dict[int, ClientRecord] = {}
    for task in training_tasks(run):
        if task.client not in closest or _nearness(task) >= _nearness(closest[task.client]):
            closest[task.client] = task
    return closest


def _nearness(task: ClientRecord) -> float:
    return -1.0 if task.measured_peak_bytes is None else task.measured_peak_bytes / task.budget_bytes


def clients_reached(run: RunRecords) -> int:
    """Distinct clients that completed a training task."""
    return len({task.client for task in training_tasks(run) if task.outcome == COMPLETED})


def schedule_of(run: RunRecords) -> str:
    """'synchronous', 'semi-asynchronous' or 'asynchronous'; runs that say nothing had rounds."""
    if run.summary and run.summary.schedule != "rounds":
        return run.summary.schedule
    table = run.config.get("schedule", {})
    kind = str(table.get("kind", "synchronous"))
    return "semi-asynchronous" if kind == "asynchronous" and table.get("buffer", 1) > 1 else kind


def is_asynchronous(run: RunRecords) -> bool:
    """Whether a round is one aggregation, with other tasks still under way."""
    return schedule_of(run).endswith("asynchronous")


def stale_runs(runs: Runs) -> dict[str, RunRecords]:
    """The runs in which some training task ended after the model that it began with had been replaced."""
    return {label: run for label, run in runs.items() if any(task.staleness for task in training_tasks(run))}
