"""The headline comparison in one table: each fleet's cells apart, since one of them favours who leaves nobody out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Any

from showing.gains import gains_in_time
from showing.ranks import mean_ranks, of_fleets

__all__ = ["fleets_table"]

_NOTHING = "\u2013"


def fleets_table(numbers: Mapping[str, Any]) -> str:
    """One line a variant that has a place: accuracy and rank by fleet, at equal rounds and at equal time.

    Args:
        numbers: A comparison's `table.json`.
    """
    cells = numbers["cells"]
    fleets = of_fleets(cells)
    ranks = [mean_ranks(own) for own in (*fleets, cells)]
    head = ["variant"]
    for own, tied in zip(fleets, ("speed", "data"), strict=True):
        head += [f"memory tied to {tied}, {len(own)} cells", "when exclusion ends"]
    head += [f"all {len(cells)} cells", "when exclusion ends", "from no limits", "time / no limits\u2019"]
    head += ["mean rank: speed, data, all"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for label, each in numbers["overall"].items():
        if each["rank"] is None:
            continue
        row = [f"{label} ({each['runs']} of {each['runs'] + each['missing']} runs)" if each["missing"] else label]
        for own in (*fleets, cells):
            row += [_spread(_values(own, label, "difference"), _points), _in_time(own, label)]
        ratios = [1 / found["ratio"] for cell in cells if (found := _of(cell, label, "oracle")) and found["ratio"]]
        both, _, missed = each["oracle_counts"]
        times = _spread(ratios, "{:.2f}\u00d7".format, mean=geometric_mean)
        row += [_spread(_values(cells, label, "short"), _points)]
        row += [times + (f"; {missed} of {both + missed} missed" if missed else "")]
        row += [", ".join(format(found[label], ".2f") if label in found else _NOTHING for found in ranks)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(
        [
            *lines,
            "",
            "Final accuracy against random-exclusion and from the oracle in percentage points, mean over cells (least "
            "to most): all have had equal rounds, which is not equal time. When exclusion ends: the accuracy that each "
            "had at the virtual time at which exclusion\u2019s run was over, against exclusion\u2019s last. Times are "
            "virtual, to the targets that both reached, means geometric; missed are those of the oracle\u2019s, of "
            "all seeds and cells. Rank: mean place in time to the targets, 1 is best.",
            "",
        ]
    )


def _in_time(cells: Sequence[Mapping[str, Any]], label: str) -> str:
    """How far from the reference when its run with the same seed is over."""
    found = [fmean(own) for cell in cells if (own := gains_in_time(cell, label))]
    return _points(fmean(found)) if found else _NOTHING


def _of(cell: Mapping[str, Any], label: str, name: str) -> Any:
    return cell["variants"].get(label, {}).get(name)


def _values(cells: Sequence[Mapping[str, Any]], label: str, name: str) -> list[float]:
    return [found["mean"] for cell in cells if (found := _of(cell, label, name))]


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _spread(
    values: Sequence[float], shown: Callable[[float], str], *, mean: Callable[[Sequence[float]], float] = fmean
) -> str:
    if not values:
        return _NOTHING
    middle = shown(mean(values))
    return middle if len(values) == 1 else f"{middle} ({shown(min(values))} to {shown(max(values))})"
