"""What the variants of a cell have in common, and in which settings they differ though a comparison wants them equal.

Methods, policies, planners and the like are what is compared. Data, model, training, rounds and fleet are the same for
all, unless a recipe says otherwise; then the page must say so, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedhybrid.report.comparison.load import Cell

__all__ = ["differing", "sharing_notices", "sharing_words"]

_EQUAL = (
    "dataset", "data", "rounds", "schedule", "evaluation", "stream", "model", "model_options", "train", "pretrain",
    "fleet",
)  # fmt: skip
_SHARED = {
    "data": ("dataset", "data", "stream"),
    "fleet": ("fleet",),
    "initial weights": ("dataset", "model", "model_options", "pretrain"),
}
_NAMED = 6


def differing(cell: Cell) -> dict[str, tuple[str, ...]]:
    """Settings, by dotted path, in which variants differ: those that have another value than most.

    The oracle may have other budgets. Of equally frequent values, the first variant's counts as that of most.
    """
    tables = {label: _flat(table, oracle=label == cell.oracle) for label, table in cell.settings.items()}
    if cell.oracle in tables and len(tables) > 1:  # its tiers are like the others' but for the budgets
        bare = {label: _without_budgets(table) for label, table in tables.items()}
        mine = bare[cell.oracle]
        like = next((label for label in tables if label != cell.oracle and bare[label] == mine), "")
        if like:
            tables[cell.oracle] |= {"fleet.tiers": tables[like].get("fleet.tiers")}
    found: dict[str, tuple[str, ...]] = {}
    for path in dict.fromkeys(path for table in tables.values() for path in table):
        values = {label: json.dumps(table.get(path), sort_keys=True) for label, table in tables.items()}
        words = list(values.values())
        most = max(dict.fromkeys(words), key=words.count)
        if odd := tuple(label for label, value in values.items() if value != most):
            found[path] = odd
    return found


def sharing_notices(cells: Sequence[Cell]) -> list[str]:
    """One line for each set of differences, with the cells that have it."""
    cells_by_words: dict[str, list[str]] = {}
    for cell in cells:
        paths: dict[str, list[str]] = {}
        for path, labels in differing(cell).items():
            for label in labels:
                paths.setdefault(label, []).append(path)
        if paths:
            words = "; ".join(f"{label} in {_listed(own)}" for label, own in paths.items())
            cells_by_words.setdefault(words, []).append(cell.label)
    return [
        f"Not all settings that a comparison wants equal are those of most variants: {words}. The numbers there do not "
        f"compare methods alone ({_listed(labels, '; ')})."
        for words, labels in cells_by_words.items()
    ]


def sharing_words(cells: Sequence[Cell]) -> str:
    """Which of data, fleet and initial weights all variants of each cell have in common."""
    tables = {path.partition(".")[0] for cell in cells for path in differing(cell)}
    shared = [name for name, parts in _SHARED.items() if not tables & set(parts)]
    own = [name for name in _SHARED if name not in shared]
    budgets = " (but for the oracle\u2019s budgets)" if any(cell.oracle for cell in cells) and "fleet" in shared else ""
    words = f"All variants of a cell share {_and(shared)} with each seed{budgets}." if shared else ""
    return f"{words} Not all share {_and(own, 'or')}: see above.".strip() if own else words


def _flat(table: Mapping[str, Any], prefix: str = "", *, oracle: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{prefix}{key}"
        if (not prefix and key not in _EQUAL) or (oracle and path == "fleet.budget"):
            continue
        found |= _flat(value, f"{path}.", oracle=oracle) if isinstance(value, Mapping) and value else {path: value}
    return found


def _without_budgets(table: Mapping[str, Any]) -> dict[str, Any]:
    tiers = table.get("fleet.tiers") or []
    return {"fleet.tiers": [{key: value for key, value in tier.items() if key != "budget"} for tier in tiers]}


def _listed(words: Sequence[str], between: str = ", ") -> str:
    return between.join(words[:_NAMED]) + (f" and {len(words) - _NAMED:,} more" if len(words) > _NAMED else "")


def _and(words: Sequence[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
