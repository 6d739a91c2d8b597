"""Effects apart: two variants that differ in one thing, compared over all cells that have both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedhybrid.report.comparison.load import Cell
from fedhybrid.report.comparison.overall import Counts, Spread, counted, over_cells
from fedhybrid.report.comparison.statistics import Estimate
from fedhybrid.report.comparison.timing import Beside, Seeds, beside_at, difference, summary_of
from fedhybrid.report.load import RunRecords

__all__ = ["Effect", "effects"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What comes of one thing.

    Attributes:
        variant: The variant that has it.
        against: The one that has not.
        cells: How many have finished runs of both.
        same_ratio: Share of rounds in which both trained with the same devices, all seeds and cells.
        difference: Final accuracy minus the other's, each cell once.
        above: Cells in which that is above zero by more than half of its 95 % interval.
        below: Those in which it is below zero by more.
        intervals: Cells that have an interval.
        speed_up: The other's time / this one's to the targets, each cell once; the mean is geometric.
        counts: Targets of all seeds and cells: reached by both, by this one alone, by the other alone.
        time_ratio: Virtual time of all rounds / the other's, each cell once; the mean is geometric.
    """

    variant: str
    against: str
    cells: int
    same_ratio: float | None
    difference: Spread | None
    above: int
    below: int
    intervals: int
    speed_up: Spread | None
    counts: Counts
    time_ratio: Spread | None


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Both variants in one cell."""

    same: int
    rounds: int
    difference: Estimate | None
    beside: Beside
    time_ratio: float


def effects(cells: Sequence[Cell]) -> dict[str, Effect]:
    """Every effect that some cell names and has runs for, in the order in which they come."""
    named = {(label, *pair): None for cell in cells for label, pair in cell.effects.items()}
    found = {}
    for label, variant, against in named:
        pairs = [
            pair
            for cell in cells
            if cell.effects.get(label) == (variant, against)
            and (pair := _pair(cell.finished.get(variant, {}), cell.finished.get(against, {}), cell.targets))
        ]
        if pairs:
            found[label] = _effect(variant, against, pairs)
    return found


def _pair(own: Seeds, other: Seeds, targets: Sequence[float]) -> _Pair | None:
    """Of the seeds that both have finished; None where there are none."""
    seeds = [seed for seed in own if seed in other]
    if not seeds:
        return None
    cohorts = [(_cohorts(own[seed]), _cohorts(other[seed])) for seed in seeds]
    times_s = [sum(summary_of(runs[seed]).virtual_time_s for seed in seeds) for runs in (own, other)]
    return _Pair(
        same=sum(mine == theirs for one, two in cohorts for mine, theirs in zip(one, two, strict=False)),
        rounds=sum(max(len(one), len(two)) for one, two in cohorts),
        difference=difference(own, other),
        beside=beside_at(own, targets, other),
        time_ratio=times_s[0] / times_s[1] if times_s[1] > 0 else 1.0,
    )


def _cohorts(run: RunRecords) -> list[tuple[int, ...]]:
    return [tuple(record.cohort) for record in run.rounds]


def _effect(variant: str, against: str, pairs: Sequence[_Pair]) -> Effect:
    differences = [pair.difference for pair in pairs if pair.difference]
    rounds = sum(pair.rounds for pair in pairs)
    return Effect(
        variant=variant,
        against=against,
        cells=len(pairs),
        same_ratio=sum(pair.same for pair in pairs) / rounds if rounds else None,
        difference=over_cells([each.mean for each in differences]),
        above=sum(each.half is not None and each.mean > each.half for each in differences),
        below=sum(each.half is not None and -each.mean > each.half for each in differences),
        intervals=sum(each.half is not None for each in differences),
        speed_up=over_cells([pair.beside.ratio for pair in pairs], geometric=True),
        counts=counted([pair.beside for pair in pairs]),
        time_ratio=over_cells([pair.time_ratio for pair in pairs], geometric=True),
    )
