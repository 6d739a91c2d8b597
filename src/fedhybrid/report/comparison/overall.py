"""All cells together: how each variant stands to the reference, on average and at its extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedhybrid.report.comparison.results import CellResult
from fedhybrid.report.comparison.statistics import Estimate, geometric_mean, mean_or_none
from fedhybrid.report.comparison.timing import Beside

__all__ = ["Counts", "Overall", "Spread", "counted", "over_cells", "overall", "sides"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean, the smallest and the largest of some numbers, and how many they are."""

    mean: float
    low: float
    high: float
    count: int


class Counts(NamedTuple):
    """How many targets, each seed and cell once, both of two variants reached, the first alone, the second alone."""

    both: int
    alone: int
    missed: int

    @property
    def known(self) -> int:
        """How many at least one of the two reached."""
        return sum(self)


@dataclass(frozen=True, kw_only=True)
class Overall:
    """One variant over all cells that have it.

    Attributes:
        cells: How many have it.
        runs: Its finished runs.
        missing: Those that are not finished, also of cells in which none is.
        difference: Final accuracy minus the reference's, each cell once.
        short: Final accuracy minus the oracle's, each cell once.
        above: Cells in which `difference` is above zero by more than half of its 95 % interval.
        below: Those in which it is below zero by more.
        intervals: Cells that have an interval.
        oracle: Time to the targets / the oracle's, each cell once; the mean is geometric.
        oracle_counts: Targets of all seeds and cells: reached by both, by this one alone, by the oracle alone.
        speed_up: The reference's time / this one's to fixed targets, each cell once; the mean is geometric. What only
            one of the two reached is not in it: the next one counts that.
        counts: Targets of all seeds and cells: reached by both, by this one alone, by the reference alone.
        best_speed_up: The same as `speed_up` for the best accuracy of the reference, each cell once.
        best_missed: Runs that never reached that.
        best_runs: Of how many.
        rank: Mean place in time to the targets.
        plan_ratio: Seconds of planned steps / unplanned ones, mean over cells.
        over_budget: Tasks above their budget, all cells.
        short_steps: Steps with too little memory, all cells.
    """

    cells: int
    runs: int
    missing: int
    difference: Spread | None
    above: int
    below: int
    intervals: int
    short: Spread | None
    oracle: Spread | None
    oracle_counts: Counts
    speed_up: Spread | None
    counts: Counts
    best_speed_up: Spread | None
    best_missed: int
    best_runs: int
    rank: float | None
    plan_ratio: float | None
    over_budget: int
    short_steps: int


def overall(cells: Sequence[CellResult]) -> dict[str, Overall]:
    """Each variant over all cells, in the order in which variants come."""
    labels = dict.fromkeys(label for cell in cells for label in cell.variants)
    missing = {label: sum(cell.missing.get(label, 0) for cell in cells) for label in labels}
    return {
        label: _overall(label, [cell for cell in cells if label in cell.variants], missing[label]) for label in labels
    }


def _overall(label: str, cells: Sequence[CellResult], missing: int) -> Overall:
    own = [cell.variants[label] for cell in cells]
    others = [variant.beside for variant in own if variant.beside]
    oracles = [variant.oracle for variant in own if variant.oracle]
    differences = [variant.difference for variant in own if variant.difference]
    above, below, intervals = sides(differences)
    bests = [variant.reference_best for variant in own if variant.reference_best is not None]
    return Overall(
        cells=len(cells),
        runs=sum(len(variant.seeds) for variant in own),
        missing=missing,
        difference=over_cells([found.mean for found in differences]),
        above=above,
        below=below,
        intervals=intervals,
        short=over_cells([variant.short.mean for variant in own if variant.short]),
        oracle=over_cells([1 / each.ratio for each in oracles if each.ratio], geometric=True),
        oracle_counts=counted(oracles),
        speed_up=over_cells([each.ratio for each in others], geometric=True),
        counts=counted(others),
        best_speed_up=over_cells([best.beside.ratio for best in bests if best.beside], geometric=True),
        best_missed=sum(best.runs - best.reached for best in bests),
        best_runs=sum(best.runs for best in bests),
        rank=mean_or_none([mine.rank for variant in own for mine in variant.targets]),
        plan_ratio=mean_or_none([variant.plan_ratio for variant in own]),
        over_budget=sum(variant.over_budget for variant in own),
        short_steps=sum(variant.short_steps for variant in own),
    )


def counted(found: Sequence[Beside]) -> Counts:
    """All of them together."""
    return Counts(
        both=sum(each.both for each in found),
        alone=sum(each.alone for each in found),
        missed=sum(each.missed for each in found),
    )


def sides(differences: Sequence[Estimate]) -> tuple[int, int, int]:
    """How many are above zero by more than half of their interval, how many below, and how many have an interval."""
    known = [(each.mean, each.half) for each in differences if each.half is not None]
    return sum(mean > half for mean, half in known), sum(-mean > half for mean, half in known), len(known)


def over_cells(values: Sequence[float | None], *, geometric: bool = False) -> Spread | None:
    """Mean (of ratios, the geometric one), smallest and largest of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    mean = geometric_mean(known) if geometric else mean_or_none(known)
    return None if mean is None else Spread(mean=mean, low=min(known), high=max(known), count=len(known))
