"""How far one variant of a comparison's `table.json` is above another, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["gains", "gains_in_time"]


def gains(cell: Mapping[str, Any] | None, own: str, other: str) -> list[float]:
    """Final accuracy minus the other's, of each seed that both have; none where a variant is missing."""
    ends, others = _ends(cell, own), _ends(cell, other)
    return [ends[seed] - others[seed] for seed in ends if seed in others]


def gains_in_time(cell: Mapping[str, Any], own: str) -> list[float]:
    """Accuracy at the moment when the reference's run is over, minus the reference's last; none of the reference."""
    ends = _ends(cell, cell["reference"])
    variant = cell["variants"].get(own)
    if own == cell["reference"] or variant is None or not variant["at_reference_end"]:
        return []
    seeds = [seed for seed in variant["seeds"] if seed in ends]
    values = zip(seeds, variant["at_reference_end"]["values"], strict=True)
    return [value - ends[seed] for seed, value in values]


def _ends(cell: Mapping[str, Any] | None, label: str) -> dict[int, float]:
    variant = None if cell is None else cell["variants"].get(label)
    return {} if variant is None else dict(zip(variant["seeds"], variant["final"]["values"], strict=True))
