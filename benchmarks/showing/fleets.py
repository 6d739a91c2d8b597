"""The headline comparison in one table: each fleet's cells apart, since one of them favours who leaves nobody out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Any

__all__ = ["fleets_table"]

_TIED_TO_DATA = "memory tied to data"  # part of a cell's label; all other cells tie memory to speed
_NOTHING = "\u2013"


def fleets_table(numbers: Mapping[str, Any]) -> str:
    """One line a variant that has a place: accuracy against the reference by fleet, and what the whole comes to.

    Args:
        numbers: A comparison's `table.json`.
    """
    cells = numbers["cells"]
    data = [cell for cell in cells if _TIED_TO_DATA in cell["label"]]
    speed = [cell for cell in cells if cell not in data]
    head = (
        "variant",
        f"memory tied to speed, {len(speed)} cells",
        f"memory tied to data, {len(data)} cells",
        f"all {len(cells)} cells",
        "from no limits",
        "times its time to targets",
        "mean rank",
    )
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for label, each in numbers["overall"].items():
        if each["rank"] is None:
            continue
        gains = [_spread(_values(own, label, "difference"), _points) for own in (speed, data, cells)]
        short = _spread(_values(cells, label, "short"), _points)
        ratios = [1 / found["ratio"] for cell in cells if (found := _of(cell, label, "oracle")) and found["ratio"]]
        both, _, missed = each["oracle_counts"]
        times = _spread(ratios, "{:.2f}\u00d7".format, mean=geometric_mean)
        times += f"; {missed} of {both + missed} missed" if missed else ""
        name = f"{label} ({each['runs']} of {each['runs'] + each['missing']} runs)" if each["missing"] else label
        lines.append(f"| {' | '.join([name, *gains, short, times, format(each['rank'], '.2f')])} |")
    return "\n".join(
        [
            *lines,
            "",
            "Final accuracy against random-exclusion and from the oracle in percentage points, mean over cells (least "
            "to most). Times are to the targets that both reached, means geometric; missed are those of the oracle's, "
            "of all seeds and cells. Rank: place in time to targets.",
            "",
        ]
    )


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
