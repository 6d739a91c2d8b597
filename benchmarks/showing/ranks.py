"""Places in time to the targets, over some of a comparison's cells or targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

__all__ = ["mean_ranks", "of_fleets", "ranks_in_words"]

_TIED_TO_DATA = "memory tied to data"  # part of a cell's label; all other cells tie memory to speed


def of_fleets(cells: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Cells in which memory is tied to speed, and those in which it is tied to data."""
    data = [cell for cell in cells if _TIED_TO_DATA in cell["label"]]
    return [cell for cell in cells if cell not in data], data


def mean_ranks(
    cells: Sequence[Mapping[str, Any]], *, counts: Callable[[str, float], bool] = lambda label, target: True
) -> dict[str, float]:
    """Each variant's mean place, the first first; without those that have none.

    Args:
        cells: Of a comparison's `table.json`.
        counts: Whether a target of the cell with this label counts.
    """
    places: dict[str, list[float]] = {}
    for cell in cells:
        for label, variant in cell["variants"].items():
            for each in variant["targets"]:
                if each["rank"] is not None and counts(cell["label"], each["target"]):
                    places.setdefault(label, []).append(each["rank"])
    means = {label: fmean(ranks) for label, ranks in places.items()}
    return {label: means[label] for label in sorted(means, key=means.__getitem__)}


def ranks_in_words(ranks: Mapping[str, float], own: str, *, most: int = 3) -> str:
    """The first ones with their ranks, and `own` wherever it is."""
    listed = [*list(ranks)[:most]]
    listed += [] if own in listed or own not in ranks else [own]
    return ", ".join(f"{label} {ranks[label]:.2f}" for label in listed)
