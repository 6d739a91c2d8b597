"""What plans cost, priced beside measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

__all__ = ["overhead_table"]

HOW = {
    "device_overhead_ratio": "for its device",
    "priced_overhead_ratio": "priced here",
    "measured_overhead_ratio": "measured",
}


def overhead_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a setting and tier, with the overheads of each kind of plan; means and how they compare below.

    Args:
        rows: One for each setting, tier and kind of plan; two kinds, of which the first is compared with the second.
    """
    kinds = list(dict.fromkeys(row["plans"] for row in rows))
    places: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        places.setdefault((row["setting"], row["tier"]), {})[row["plans"]] = row
    head = ["setting", "tier", *(f"{kind}: {words}" for kind in kinds for words in HOW.values())]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- |{' ---: |' * (len(head) - 2)}"]
    for place, found in places.items():
        cells = [f"{found[kind][name]:+.1%}" if kind in found else "no plan" for kind in kinds for name in HOW]
        lines.append(f"| {' | '.join([*place, *cells])} |")
    both = [found for found in places.values() if len(found) == len(kinds)]
    if both:
        means = {(kind, name): fmean(found[kind][name] for found in both) for kind in kinds for name in HOW}
        cells = [f"{means[kind, name]:+.1%}" for kind in kinds for name in HOW]
        lines.append(f"| mean of {len(both)} with both | | {' | '.join(cells)} |")
        lines += ["", _compared(kinds, means, both)]
    exact = sum(row["peak_bytes"] == row["measured_peak_bytes"] for row in rows)
    over = sum(row["measured_peak_bytes"] > row["budget_bytes"] for row in rows)
    lines.append(f"\nMeasured peaks: {exact} of {len(rows)} are the planned ones to the byte, {over} above the budget.")
    return "\n".join(lines)


def _compared(
    kinds: Sequence[str], means: Mapping[tuple[str, str], float], both: Sequence[Mapping[str, Mapping[str, Any]]]
) -> str:
    one, other = kinds
    factors = [f"{means[one, name] / means[other, name]:.2f} ({words})" for name, words in HOW.items()]
    measured = "measured_overhead_ratio"
    lower = sum(found[other][measured] < found[one][measured] for found in both)
    return (
        f"Mean overhead, {one} / {other}: {', '.join(factors)}. Measured, {other} is lower in {lower} of {len(both)}."
    )
