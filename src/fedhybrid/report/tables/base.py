"""What all tables are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["NONE", "Table", "or_none"]

NONE = "\u2013"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column heads and rows of cells. `left` columns hold words, the others numbers; `note` stands below."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    note: str = ""


def or_none(value: float | None, show: Callable[[float], str]) -> str:
    """The number as `show` writes it, or a dash."""
    return NONE if value is None else show(value)
