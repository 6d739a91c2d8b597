"""Runs beside those of another variant with the same seeds: how much better, and how much sooner."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedhybrid.records import Summary
from fedhybrid.report.comparison.load import Cell
from fedhybrid.report.comparison.statistics import Estimate, estimate, geometric_mean, mean_or_none, ranks
from fedhybrid.report.facts import time_to_accuracy_s
from fedhybrid.report.load import RunRecords

__all__ = ["Beside", "Reached", "Seeds", "beside", "beside_at", "difference", "rank_means", "reached", "summary_of"]

Seeds = Mapping[int, RunRecords]  # finished runs of one variant


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Times to accuracies beside another variant's, each seed and each accuracy once.

    Attributes:
        ratio: The other's time / this one's, geometric mean over those that both reached; None where there are none.
        both: How many both reached.
        alone: How many only this one reached.
        missed: How many only the other reached.
    """

    ratio: float | None
    both: int
    alone: int
    missed: int


@dataclass(frozen=True, kw_only=True)
class Reached:
    """When an accuracy was reached, in virtual seconds.

    Attributes:
        target: The accuracy; None for the best one that the reference had with the same seed.
        mean_s: Over the seeds that reached it; None where none did.
        reached: How many did.
        runs: Of how many.
        beside: The same seeds of the reference; None for the reference, and where there is none.
        at_least: Where only this one ever reached it: the reference's whole time / this one's, the smallest.
        rank: Place among the cell's ranked variants, mean over the seeds that all of them have finished; who never
            reached it shares the last places. None where none of them ever did.
    """

    target: float | None
    mean_s: float | None
    reached: int
    runs: int
    beside: Beside | None = None
    at_least: float | None = None
    rank: float | None = None


def summary_of(run: RunRecords) -> Summary:
    """Of a finished run; others are not loaded."""
    assert run.summary is not None
    return run.summary


def reached(
    runs: Seeds,
    targets: Mapping[int, float],
    reference: Seeds,
    *,
    target: float | None = None,
    rank: float | None = None,
) -> Reached:
    """When these runs came to their targets.

    Args:
        runs: Of one variant.
        targets: The accuracy for each of their seeds.
        reference: Runs of the reference, by seed; there may be none.
        target: The accuracy that all seeds have in common.
        rank: As `rank_means` gives it.
    """
    times_s = {seed: time_to_accuracy_s(run, targets[seed]) for seed, run in runs.items()}
    known = {seed: time_s for seed, time_s in times_s.items() if time_s is not None}
    pairs = [
        (seed, times_s[seed], time_to_accuracy_s(reference[seed], targets[seed]))
        for seed in times_s
        if seed in reference
    ]
    bounds = [
        summary_of(reference[seed]).virtual_time_s / own_s
        for seed, own_s, other_s in pairs
        if own_s is not None and own_s > 0 and other_s is None
    ]
    other = beside([(own_s, other_s) for _, own_s, other_s in pairs]) if pairs else None
    return Reached(
        target=target,
        mean_s=mean_or_none(list(known.values())),
        reached=len(known),
        runs=len(runs),
        beside=other,
        at_least=min(bounds) if bounds and other and not other.both else None,
        rank=rank,
    )


def beside(pairs: Sequence[tuple[float | None, float | None]]) -> Beside:
    """One's own times and another's, None where an accuracy was never reached."""
    return Beside(
        ratio=geometric_mean([other_s / own_s for own_s, other_s in pairs if own_s and other_s]),
        both=sum(own_s is not None and other_s is not None for own_s, other_s in pairs),
        alone=sum(own_s is not None and other_s is None for own_s, other_s in pairs),
        missed=sum(own_s is None and other_s is not None for own_s, other_s in pairs),
    )


def beside_at(runs: Seeds, targets: Sequence[float], other: Seeds) -> Beside:
    """Times to all targets beside the other's with the same seed."""
    pairs = [
        (time_to_accuracy_s(run, target), time_to_accuracy_s(other[seed], target))
        for seed, run in runs.items()
        if seed in other
        for target in targets
    ]
    return beside(pairs)


def difference(runs: Seeds, other: Seeds) -> Estimate | None:
    """Between the final accuracies of runs with the same seed; None where there are none."""
    pairs = [(summary_of(run), summary_of(other[seed])) for seed, run in runs.items() if seed in other]
    return estimate([own.final_accuracy - theirs.final_accuracy for own, theirs in pairs])


def rank_means(cell: Cell, target: float) -> dict[str, float]:
    """Each ranked variant's place in time to the target, mean over `Cell.ranked_seeds`; never is later than any time.

    Empty where no ranked variant ever reached it: nobody was sooner than another.
    """
    found: dict[str, list[float]] = {}
    anybody = False
    for seed in cell.ranked_seeds:
        times_s = {
            label: math.inf if (time_s := time_to_accuracy_s(runs[seed], target)) is None else time_s
            for label, runs in cell.racing.items()
        }
        anybody = anybody or any(math.isfinite(time_s) for time_s in times_s.values())
        for label, rank in ranks(times_s).items():
            found.setdefault(label, []).append(rank)
    return {label: statistics.fmean(each) for label, each in found.items()} if anybody else {}
