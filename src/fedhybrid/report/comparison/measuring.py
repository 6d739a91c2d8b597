"""From the records of a cell's runs to its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedhybrid.records import Summary
from fedhybrid.report.comparison.load import Cell
from fedhybrid.report.comparison.results import CellResult, TierResult, VariantResult
from fedhybrid.report.comparison.statistics import Estimate, estimate, mean_or_none
from fedhybrid.report.comparison.timing import Seeds, beside_at, difference, rank_means, reached, summary_of
from fedhybrid.report.facts import accuracy_curve, stand_in_tiers, tier_order, tiers_of
from fedhybrid.report.load import RunRecords
from fedhybrid.report.tasks import failed_tasks, measured_tasks, training_tasks, violations

__all__ = ["measure_cell", "plan_ratio"]

_LATE = 5  # tests


def measure_cell(cell: Cell) -> CellResult:
    """All numbers of one cell."""
    finished = cell.finished
    reference = finished.get(cell.reference or "", {})
    places = {target: rank_means(cell, target) for target in cell.targets}
    every = {f"{label} {seed}": run for label, runs in finished.items() for seed, run in runs.items()}
    return CellResult(
        label=cell.label,
        seeds=cell.seeds,
        targets=cell.targets,
        unreached=sum(not ranks for ranks in places.values()),
        reference=cell.reference if reference else None,
        tiers=tuple(tier_order(every)),
        missing=cell.missing,
        variants={
            label: _variant(
                runs,
                {target: places[target].get(label) for target in cell.targets},
                reference=reference if label != cell.reference else {},
                oracle=finished.get(cell.oracle or "", {}) if label != cell.oracle else {},
                best=reference,
            )
            for label, runs in finished.items()
        },
    )


def plan_ratio(runs: Sequence[RunRecords], tier: str | None = None) -> float | None:
    """Planned / unplanned seconds of a step, mean over the steps of tasks whose plan saves memory; None without any.

    A plan's file has both on its own device: the step's seconds, and how many of them the plan costs. With `tier`, only
    that tier's tasks.
    """
    steps, total = 0, 0.0
    for run in runs:
        for task in training_tasks(run):
            plan = run.plans.get(task.plan or "", {})
            if tier not in (None, task.tier):
                continue
            if not plan or plan["peak_bytes"] >= plan["keep_all_peak_bytes"]:
                continue
            plain_s = plan["step_time_s"] - plan["extra_time_s"]
            if plain_s > 0:
                steps += task.steps
                total += task.steps * plan["step_time_s"] / plain_s
    return total / steps if steps else None


def _variant(
    runs: Seeds, targets: Mapping[float, float | None], *, reference: Seeds, oracle: Seeds, best: Seeds
) -> VariantResult:
    """One variant; it is compared with nothing where `reference` or `oracle` is empty.

    Args:
        runs: Its own.
        targets: Each with its rank.
        reference: Runs of the reference.
        oracle: Runs of the oracle.
        best: Whose best accuracy is a target, too.
    """
    both = {seed: run for seed, run in runs.items() if seed in best}
    bests = {seed: summary_of(best[seed]).best_accuracy for seed in both}
    every = list(runs.values())
    first = summary_of(every[0])
    tasks = [task for run in every for task in measured_tasks(run)]
    return VariantResult(
        method=first.method,
        policy=first.policy,
        seeds=tuple(runs),
        final=_always(runs, lambda summary: summary.final_accuracy),
        best=_always(runs, lambda summary: summary.best_accuracy),
        late=_late(runs),
        difference=difference(runs, reference),
        short=difference(runs, oracle),
        at_reference_end=_at_end_of(runs, best),
        beside=beside_at(runs, list(targets), reference) if reference else None,
        oracle=beside_at(runs, list(targets), oracle) if oracle else None,
        targets=tuple(
            reached(runs, dict.fromkeys(runs, target), reference, target=target, rank=rank)
            for target, rank in targets.items()
        ),
        reference_best=reached(both, bests, reference) if both else None,
        virtual_time_s=_always(runs, lambda summary: summary.virtual_time_s).mean,
        tiers=_tiers(every),
        worst_tier=_known(runs, _worst_tier),
        worst_tenth=_known(runs, lambda summary: summary.worst_tenth_accuracy),
        bytes_up=_always(runs, lambda summary: summary.bytes_up).mean,
        bytes_down=_always(runs, lambda summary: summary.bytes_down).mean,
        energy_j=mean_or_none([summary_of(run).energy_j for run in every]),
        failed=sum(len(failed_tasks(run)) for run in every),
        measured=len(tasks),
        over_budget=sum(len(violations(run)) for run in every),
        short_steps=sum(summary_of(run).violations for run in every),
        plan_ratio=plan_ratio(every),
        tier_plan_ratios={
            tier: ratio
            for tier in dict.fromkeys(task.tier for task in tasks)
            if (ratio := plan_ratio(every, tier)) is not None
        },
        stand_in_tiers=tuple(dict.fromkeys(tier for run in every for tier in stand_in_tiers(run))),
        peak_ratio=max(((task.measured_peak_bytes or 0) / task.budget_bytes for task in tasks), default=None),
    )


def _at_end_of(runs: Seeds, other: Seeds) -> Estimate | None:
    """The accuracy that each had when the other's run with the same seed was over; None where one had none yet."""
    found = []
    for seed, run in runs.items():
        if seed not in other:
            continue
        end_s = summary_of(other[seed]).virtual_time_s
        tests = [test.accuracy for test in accuracy_curve(run) if test.virtual_time_s <= end_s]
        if not tests:
            return None
        found.append(tests[-1])
    return estimate(found)


def _late(runs: Seeds) -> Estimate:
    curves = [[test.accuracy for test in accuracy_curve(run)][-_LATE:] for run in runs.values()]
    found = estimate([sum(curve) / len(curve) for curve in curves])
    assert found is not None
    return found


def _always(runs: Seeds, of: Callable[[Summary], float]) -> Estimate:
    found = estimate([of(summary_of(run)) for run in runs.values()])
    assert found is not None
    return found


def _known(runs: Seeds, of: Callable[[Summary], float | None]) -> Estimate | None:
    """Over the runs that tell it."""
    return estimate([value for run in runs.values() if (value := of(summary_of(run))) is not None])


def _worst_tier(summary: Summary) -> float | None:
    return min((value for value in summary.accuracy_by_tier.values() if value is not None), default=None)


def _tiers(runs: Sequence[RunRecords]) -> dict[str, TierResult]:
    facts = [tiers_of(run) for run in runs]
    found = {}
    for tier in dict.fromkeys(name for each in facts for name in each):
        own = [each[tier] for each in facts if tier in each]
        found[tier] = TierResult(
            clients=mean_or_none([fact.clients for fact in own]),
            reached=sum(fact.reached for fact in own) / len(own),
            tasks=sum(fact.tasks for fact in own) / len(own),
            accuracy=mean_or_none([fact.accuracy for fact in own]),
        )
    return found
