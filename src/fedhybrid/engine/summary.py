"""`summary.json`, computed from a run's records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedhybrid.engine.dispatch import counts
from fedhybrid.engine.fairness import fairness_of
from fedhybrid.engine.federation import Federation
from fedhybrid.engine.stream import average_incremental_accuracy, forgetting
from fedhybrid.engine.world import World
from fedhybrid.fleet import Tier
from fedhybrid.records import COMPLETED, ClientRecord, RoundRecord, Summary
from fedhybrid.tree import Tensors

__all__ = [
    "budget_violations",
    "failure_counts",
    "participation",
    "summarise",
    "time_to_accuracy_s",
]

_TARGETS_PERCENT = range(50, 100, 5)


def summarise(
    job: Federation,
    world: World,
    rounds: Sequence[RoundRecord],
    clients: Sequence[ClientRecord],
    *,
    weights: Tensors,
    runtime_bytes: int,
) -> Summary:
    """The summary of a run with at least one round, of which the last was tested.

    Args:
        job: What was run.
        world: What it was run with.
        rounds: Its records.
        clients: Its tasks.
        weights: The final model.
        runtime_bytes: Memory of the process before the run was built.
    """
    last = rounds[-1]
    accuracies = [record.accuracy for record in rounds if record.accuracy is not None]
    world.evaluator.see(None)
    fairness = fairness_of(
        weights, world.evaluator, job.dataset, job.shards, world.fleet, natural=job.natural, seed=job.seed
    )
    stale = [task.staleness for task in clients if task.outcome == COMPLETED and task.kind == "train"]
    energies_j = [record.energy_j for record in rounds]
    return Summary(
        method=job.names.method,
        policy=job.names.policy,
        dataset=job.dataset.name,
        model=job.names.model,
        seed=job.seed,
        rounds=len(rounds),
        clients=len(job.shards),
        final_accuracy=accuracies[-1],
        best_accuracy=max(accuracies),
        virtual_time_s=last.virtual_time_s,
        wall_time_s=last.wall_time_s,
        time_to_accuracy_s=time_to_accuracy_s(rounds),
        bytes_up=sum(record.bytes_up for record in rounds),
        bytes_down=sum(record.bytes_down for record in rounds),
        participation=participation(world.fleet.tiers, clients),
        budget_violations=budget_violations(clients),
        failures=failure_counts(clients),
        resident_bytes=world.book.resident_bytes,
        eager_peak_bytes=world.book.eager_peak_bytes,
        runtime_bytes=runtime_bytes,
        schedule=job.schedule.title,
        energy_j=None if None in energies_j else sum(energy for energy in energies_j if energy is not None),
        violations=sum(record.violations for record in rounds),
        staleness_mean=sum(stale) / len(stale) if stale else None,
        accuracy_by_tier=fairness.by_tier,
        worst_tenth_accuracy=fairness.worst_tenth,
        fairness_clients=fairness.clients,
        clock=world.clock,
        average_incremental_accuracy=average_incremental_accuracy(rounds),
        forgetting=forgetting(rounds),
    )


def time_to_accuracy_s(rounds: Sequence[RoundRecord]) -> dict[str, float | None]:
    """Virtual time at the end of the first round that reaches each target; None where none does."""
    return {
        f"{percent / 100:.2f}": next(
            (r.virtual_time_s for r in rounds if r.accuracy is not None and r.accuracy >= percent / 100), None
        )
        for percent in _TARGETS_PERCENT
    }


def participation(tiers: Sequence[Tier], clients: Sequence[ClientRecord]) -> dict[str, dict[str, int]]:
    """For each tier its clients, how many of them completed a task, and tasks completed and failed."""
    table = {}
    for tier in tiers:
        tasks = [record for record in clients if record.tier == tier.name and counts(record)]
        completed = [record.client for record in tasks if record.outcome == COMPLETED]
        table[tier.name] = {
            "clients": tier.clients,
            "reached": len(set(completed)),
            "tasks": len(completed),
            "failed": len(tasks) - len(completed),
        }
    return table


def budget_violations(clients: Sequence[ClientRecord]) -> int:
    """Tasks whose measured peak exceeds their budget."""
    return sum(r.measured_peak_bytes is not None and r.measured_peak_bytes > r.budget_bytes for r in clients)


def failure_counts(clients: Sequence[ClientRecord]) -> dict[str, int]:
    """How many tasks ended in each kind of failure, of those that count."""
    found = Counter(record.outcome for record in clients if record.outcome != COMPLETED and counts(record))
    return dict(sorted(found.items()))
