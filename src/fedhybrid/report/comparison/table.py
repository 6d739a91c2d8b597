"""A comparison's tables: all cells, effects apart, then of each cell what came out, whom it reached, what it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from fedhybrid.report.comparison.effects import Effect
from fedhybrid.report.comparison.overall import Counts, Overall, Spread
from fedhybrid.report.comparison.results import CellResult, TierResult, VariantResult
from fedhybrid.report.comparison.statistics import Estimate
from fedhybrid.report.comparison.timing import Beside, Reached
from fedhybrid.report.tables.base import NONE, Table, or_none
from fedhybrid.report.text import duration, energy, mib, percent

__all__ = ["brief_table", "cost_table", "effects_table", "markdown", "outcome_table", "overall_table", "reach_table"]

_GAP = "\u00a0"
_COUNTS = "both / alone / missed"
_EQUAL_ROUNDS = (
    "All have the same rounds, unless a notice above says otherwise; equal rounds are not equal time, so a final "
    "accuracy may have taken much longer than another."
)


def overall_table(found: Mapping[str, Overall], reference: str) -> Table:
    """One row a variant: how it stands to the reference over all cells; without one, what does not need it.

    Args:
        found: Of each variant.
        reference: Its name in words; "" where no cell has one.
    """
    rows = [
        (
            label + _of_runs(each),
            f"{each.cells:,}",
            or_none(each.rank, "{:.2f}".format),
            _spread(each.difference, _points),
            f"{each.above + each.below} of {each.intervals}" if each.intervals else NONE,
            _spread(each.speed_up, _times) + _within(each.counts),
            _counts(each.counts),
            _spread(each.best_speed_up, _times) + _missed(each),
            _spread(each.short, _points),
            _spread(each.oracle, _times) + _within(each.oracle_counts),
            _counts(each.oracle_counts),
            or_none(each.plan_ratio, _overhead),
            f"{each.over_budget:,}",
            f"{each.short_steps:,}",
        )
        for label, each in found.items()
    ]
    heads = (
        "variant", "cells", "mean rank", "accuracy against the reference", "cells beyond the interval",
        "speed-up to targets", _COUNTS, "speed-up to the reference\u2019s best", "accuracy from the oracle",
        "times the oracle\u2019s time", f"{_COUNTS} (oracle)", "plan overhead", "tasks over budget",
        "steps short of memory",
    )  # fmt: skip
    note = (
        "Means over cells (in brackets the smallest and the largest). The rank is the place in time to the targets, "
        f"which the oracle and variants apart do not get; the reference is {reference}. Accuracies are final ones, "
        "differences in percentage points; beyond the interval: cells in which the difference is larger than half of "
        "its 95 % interval. Means of ratios are geometric, in each cell over the targets that both reached; counted "
        "are all targets of all seeds and cells, reached by both, by this variant alone, and missed by it where the "
        f"other reached them. {_EQUAL_ROUNDS} Plan overheads are of the devices that each variant served; each cell "
        "has them by tier."
        if reference
        else "No reference was named ([compare] reference), so nothing is compared with one."
    )
    return _without_empty(Table(heads=heads, rows=tuple(rows), note=note), keep=2)


def effects_table(found: Sequence[Effect]) -> Table:
    """One row an effect: what comes of it over all cells."""
    rows = [
        (
            each.label + _of_runs(each),
            f"{each.cells:,}",
            _share(each.same_ratio),
            _spread(each.difference, _points),
            f"{each.above} / {each.below} of {each.intervals}" if each.intervals else NONE,
            _spread(each.speed_up, _times) + _within(each.counts),
            _counts(each.counts),
            _spread(each.time_ratio, _times),
            f"{each.variant} / {each.against}",
        )
        for each in found
    ]
    heads = (
        "effect", "cells", "same devices", "accuracy", "cells above / below", "speed-up to targets", _COUNTS,
        "virtual time in all", "variant / against",
    )  # fmt: skip
    note = (
        "One variant beside another, as the recipe names them: where they differ in one thing, that is its effect. "
        "Same devices: share of rounds in which both had the same ones, rounded down; at 100 % participation is equal, "
        "and the rest is the effect of what devices do. Accuracy: of the end, difference in percentage points, and how "
        "many cells are above or below by more than half of the 95 % interval. Speed-up: the other\u2019s time to the "
        "targets divided by this one\u2019s; virtual time in all: this one\u2019s divided by the other\u2019s, for "
        "all rounds of both. Means over cells (in brackets the smallest and the largest), of ratios geometric."
    )
    return Table(heads=heads, rows=tuple(rows), note=note)


def brief_table(found: Mapping[str, Overall]) -> Table:
    """The same in few columns, for a terminal."""
    heads = ("variant", "rank", "accuracy", "speed-up to targets", "both/alone\n/missed", "plans", "over\nbudget")
    rows = [
        (
            label + _of_runs(each),
            or_none(each.rank, "{:.2f}".format),
            _spread(each.difference, _points),
            _spread(each.speed_up, _times) + _within(each.counts),
            _counts(each.counts),
            or_none(each.plan_ratio, _overhead),
            f"{each.over_budget:,}",
        )
        for label, each in found.items()
    ]
    return _without_empty(Table(heads=heads, rows=tuple(rows)), keep=1)


def outcome_table(cell: CellResult) -> Table:
    """Accuracy and time of each variant."""
    heads = ["variant", "final accuracy", "best accuracy", "against the reference", "from the oracle"]
    heads.append("accuracy at the reference\u2019s end")
    for target in cell.targets:
        heads += [f"time to {percent(target, 0)}", "speed-up"]
    heads += ["time to the reference\u2019s best", "speed-up"]
    heads += ["times the oracle\u2019s time", _COUNTS, "virtual time in all"]
    rows = []
    for label, each in cell.variants.items():
        row = [
            label + _of_seeds(each, cell),
            _accuracy(each.final),
            _accuracy(each.best),
            _difference(each.difference),
            _difference(each.short),
            _accuracy(each.at_reference_end),
        ]
        for found in (*each.targets, each.reference_best):
            row += [_time(found), _sooner(found)] if found else [NONE, NONE]
        rows.append((*row, *_oracle(each.oracle), duration(each.virtual_time_s)))
    note = (
        f"Mean over {_seeds(cell)}, \u00b1 half of the 95 % interval (Student\u2019s t); differences are of runs with "
        "the same seed, in percentage points. Times are means over the seeds that got there (how many, where not all "
        "did); speed-up is the reference\u2019s time divided by this one\u2019s, geometric mean over the seeds "
        "in which both did (how many, where not in all); \u201c>\u201d where the reference never got there in its "
        f"whole time. Beside the oracle, targets of all seeds are counted: reached by both, alone, missed. "
        f"{_EQUAL_ROUNDS}"
    )
    return _without_empty(Table(heads=tuple(heads), rows=tuple(rows), note=note), keep=3)


def reach_table(cell: CellResult) -> Table:
    """Who took part, by tier, and whom the final model serves."""
    heads = (
        "variant", *(f"reached of {tier}" for tier in cell.tiers), *(f"accuracy for {tier}" for tier in cell.tiers),
        "worst tier", "worst tenth",
    )  # fmt: skip
    rows = [
        (
            label + _of_seeds(each, cell),
            *(_reached(each.tiers.get(tier)) for tier in cell.tiers),
            *(_served(each.tiers.get(tier)) for tier in cell.tiers),
            _accuracy(each.worst_tier),
            _accuracy(each.worst_tenth),
        )
        for label, each in cell.variants.items()
    ]
    note = (
        "Devices of each budget tier that completed a task, mean over seeds; the final model\u2019s accuracy on data "
        "like that of the tier\u2019s devices, of the tier that it serves worst, and of the tenth of devices that it "
        "serves worst."
    )
    return _without_empty(Table(heads=heads, rows=tuple(rows), note=note), keep=1)


def cost_table(cell: CellResult) -> Table:
    """What each variant took: traffic, energy, memory, and the plans' own price."""
    heads = (
        "variant", "method", "policy", "sent by devices", "sent to devices", "energy above idle", "plan overhead",
        "largest peak / budget", "tasks over budget", "steps short of memory", "tasks failed",
        *(f"plan overhead of {tier}" for tier in cell.tiers),
    )  # fmt: skip
    rows = [
        (
            label + _of_seeds(each, cell),
            each.method,
            each.policy,
            mib(each.bytes_up),
            mib(each.bytes_down),
            or_none(each.energy_j, energy),
            or_none(each.plan_ratio, _overhead),
            or_none(each.peak_ratio, lambda ratio: percent(ratio, 2)),
            f"{each.over_budget:,} of {each.measured:,}",
            f"{each.short_steps:,}",
            f"{each.failed:,}",
            *(or_none(each.tier_plan_ratios.get(tier), _overhead) for tier in cell.tiers),
        )
        for label, each in cell.variants.items()
    ]
    note = (
        "Traffic and energy are means over seeds; tasks and steps are counted over all of them. Plan overhead: seconds "
        "of planned steps beside the same step unplanned on the same device, where a plan saves memory; the mean is "
        "over the devices that a variant served, so variants that serve different ones compare by tier only."
    )
    return _without_empty(Table(heads=heads, rows=tuple(rows), left=3, note=note), keep=11)


def markdown(table: Table) -> str:
    """The table as markdown, with its note below."""
    lines = [
        "| " + " | ".join(head or " " for head in table.heads) + " |",
        "|" + "".join(" --- |" if i < table.left else " ---: |" for i in range(len(table.heads))),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows),
    ]
    return "\n".join([*lines, "", table.note, ""]).replace(_GAP, " ")


def _without_empty(table: Table, *, keep: int) -> Table:
    """Without columns that no row fills; the first `keep` always stay."""
    shown = [i for i in range(len(table.heads)) if i < keep or any(row[i] != NONE for row in table.rows)]
    return Table(
        heads=tuple(table.heads[i] for i in shown),
        rows=tuple(tuple(row[i] for i in shown) for row in table.rows),
        left=table.left,
        note=table.note,
    )


def _accuracy(found: Estimate | None) -> str:
    return NONE if found is None else f"{100 * found.mean:.1f}{_half(found)}{_GAP}%"


def _difference(found: Estimate | None) -> str:
    return NONE if found is None else _points(found.mean) + _half(found)


def _half(found: Estimate) -> str:
    return "" if found.half is None else f"{_GAP}\u00b1{_GAP}{100 * found.half:.1f}"


def _points(ratio: float) -> str:
    return f"{100 * ratio:+.1f}".replace("-", "\u2212")


def _times(ratio: float) -> str:
    if ratio >= 100:
        return f"{ratio:,.0f}\u00d7"
    return f"{ratio:.3g}\u00d7" if ratio >= 1 else f"{ratio:.2g}\u00d7"


def _overhead(ratio: float) -> str:
    return "+" + percent(ratio - 1, 1)


def _time(found: Reached) -> str:
    if found.mean_s is None:
        return f"never ({found.runs:,} runs)" if found.runs > 1 else "never"
    return duration(found.mean_s) + _of(found.reached, found.runs)


def _sooner(found: Reached) -> str:
    other = found.beside
    if other is None:
        return NONE
    if other.ratio is not None:
        return _times(other.ratio) + _of(other.both, found.runs)
    return NONE if found.at_least is None else f">{_GAP}{_times(found.at_least)}{_of(other.alone, found.runs)}"


def _oracle(found: Beside | None) -> tuple[str, str]:
    if found is None:
        return NONE, NONE
    return (_times(1 / found.ratio) if found.ratio else NONE), _counts(Counts(found.both, found.alone, found.missed))


def _counts(found: Counts) -> str:
    return f"{found.both:,} / {found.alone:,} / {found.missed:,}" if found.known else NONE


def _within(found: Counts) -> str:
    """Of how many targets a mean tells nothing."""
    return f" in {found.both:,} of {found.known:,}" if 0 < found.both < found.known else ""


def _of(count: int, runs: int) -> str:
    return "" if count == runs else f" ({count:,} of {runs:,})"


def _missed(found: Overall) -> str:
    return f"; missed by {found.best_missed:,} of {found.best_runs:,} runs" if found.best_missed else ""


def _of_runs(found: Overall | Effect) -> str:
    return f" ({found.runs:,} of {found.runs + found.missing:,} runs)" if found.missing else ""


def _of_seeds(found: VariantResult, cell: CellResult) -> str:
    return f" ({len(found.seeds):,} of {len(cell.seeds):,} seeds)" if len(found.seeds) < len(cell.seeds) else ""


def _spread(found: Spread | None, show: Callable[[float], str]) -> str:
    if found is None:
        return NONE
    return show(found.mean) + ("" if found.count == 1 else f" ({show(found.low)} to {show(found.high)})")


def _share(found: Spread | None) -> str:
    """Rounded down, as 100 % is a promise; the extremes where they differ."""
    if found is None:
        return NONE
    mean, low, high = (f"{math.floor(100 * ratio + 1e-9)}{_GAP}%" for ratio in (found.mean, found.low, found.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def _reached(tier: TierResult | None) -> str:
    if tier is None:
        return NONE
    return f"{tier.reached:.3g}" + ("" if tier.clients is None else f" of {tier.clients:.3g}")


def _served(tier: TierResult | None) -> str:
    return NONE if tier is None else or_none(tier.accuracy, percent)


def _seeds(cell: CellResult) -> str:
    counts = {len(each.seeds) for each in cell.variants.values()}
    low, high = min(counts, default=0), max(counts, default=0)
    number = f"{low}" if low == high else f"{low} to {high}"
    return f"{number} seed{'' if high == 1 else 's'}"
