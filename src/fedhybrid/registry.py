"""Look-up in the literal tables of plug-ins (`METHODS`, `POLICIES`, `MODELS`, ...)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from fedhybrid.errors import ConfigError

__all__ = ["lookup", "nearest_hint"]

T = TypeVar("T")


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """' Did you mean 'x'?' when something known is close to `name`, else nothing."""
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def lookup(kind: str, table: Mapping[str, T], name: str) -> T:
    """The table's row of that name.

    Raises:
        ConfigError: No such row; the message offers the nearest name and lists all.

    >>> lookup("solver", {"greedy": 1}, "gready")
    Traceback (most recent call last):
    fedhybrid.errors.ConfigError: unknown solver 'gready'. Did you mean 'greedy'? Known: greedy.
    """
    if name in table:
        return table[name]
    raise ConfigError(f"unknown {kind} {name!r}.{nearest_hint(name, table)} Known: {', '.join(sorted(table))}.")
