"""Effects apart: one variant beside another, such as differ in one thing, over all cells that have both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedhybrid.report.comparison.load import Cell
from fedhybrid.report.comparison.overall import Counts, Spread, counted, over_cells, sides
from fedhybrid.report.comparison.statistics import Estimate
from fedhybrid.report.comparison.timing import Beside, Seeds, beside_at, difference, summary_of
from fedhybrid.report.load import RunRecords

__all__ = ["Effect", "effects"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What comes of one thing.

    Attributes:
        label: What that is.
        variant: The variant that has it.
        against: The one that has not.
        cells: How many have finished runs of both with the same seed.
        runs: Such pairs of runs.
        missing: Pairs that are not finished, also of cells in which none is.
        same_ratio: Share of rounds in which both had the same devices, each cell once.
        difference: Final accuracy minus the other's, each cell once.
        above: Cells in which that is above zero by more than half of its 95 % interval.
        below: Those in which it is below zero by more.
        intervals: Cells that have an interval.
        speed_up: The other's time / this one's to the targets, each cell once; the mean is geometric.
        counts: Targets of all seeds and cells: reached by both, by this one alone, by the other alone.
        time_ratio: Virtual time of all rounds / the other's, each cell once; the mean is geometric.
    """

    label: str
    variant: str
    against: str
    cells: int
    runs: int
    missing: int
    same_ratio: Spread | None
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

    runs: int
    same_ratio: float | None
    difference: Estimate | None
    beside: Beside
    time_ratio: float | None


def effects(cells: Sequence[Cell]) -> list[Effect]:
    """Every effect that some cell names and has runs for, in the order in which they come.

    Cells of several recipes may mean different variants by one label; then each pair is an effect of its own.
    """
    named = dict.fromkeys((label, *pair) for cell in cells for label, pair in cell.effects.items())
    found = []
    for label, variant, against in named:
        own = [cell for cell in cells if cell.effects.get(label) == (variant, against)]
        pairs = [
            pair
            for cell in own
            if (pair := _pair(cell.runs.get(variant, {}), cell.runs.get(against, {}), cell.targets))
        ]
        if pairs:
            runs = sum(pair.runs for pair in pairs)
            missing = sum(len(cell.seeds) for cell in own) - runs
            found.append(_effect((label, variant, against), pairs, runs=runs, missing=missing))
    return found


def _pair(own: Seeds, other: Seeds, targets: Sequence[float]) -> _Pair | None:
    """Of the seeds that both have finished; None where there are none."""
    seeds = [seed for seed in own if seed in other]
    if not seeds:
        return None
    cohorts = [(_cohorts(own[seed]), _cohorts(other[seed])) for seed in seeds]
    rounds = sum(max(len(one), len(two)) for one, two in cohorts)
    same = sum(mine == theirs for one, two in cohorts for mine, theirs in zip(one, two, strict=False))
    times_s = [sum(summary_of(runs[seed]).virtual_time_s for seed in seeds) for runs in (own, other)]
    return _Pair(
        runs=len(seeds),
        same_ratio=same / rounds if rounds else None,
        difference=difference(own, other),
        beside=beside_at(own, targets, other),
        time_ratio=times_s[0] / times_s[1] if min(times_s) > 0 else None,
    )


def _cohorts(run: RunRecords) -> list[list[int]]:
    return [record.cohort for record in run.rounds]


def _effect(names: tuple[str, str, str], pairs: Sequence[_Pair], *, runs: int, missing: int) -> Effect:
    label, variant, against = names
    differences = [pair.difference for pair in pairs if pair.difference]
    above, below, intervals = sides(differences)
    return Effect(
        label=label,
        variant=variant,
        against=against,
        cells=len(pairs),
        runs=runs,
        missing=missing,
        same_ratio=over_cells([pair.same_ratio for pair in pairs]),
        difference=over_cells([each.mean for each in differences]),
        above=above,
        below=below,
        intervals=intervals,
        speed_up=over_cells([pair.beside.ratio for pair in pairs], geometric=True),
        counts=counted([pair.beside for pair in pairs]),
        time_ratio=over_cells([pair.time_ratio for pair in pairs], geometric=True),
    )
