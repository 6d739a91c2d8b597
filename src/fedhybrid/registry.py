"""Look-up in the literal tables of plug-ins (`METHODS`, `POLICIES`, `MODELS`, ...)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

from fedhybrid.errors import ConfigError

__all__ = ["import_factory", "lookup", "nearest_hint"]

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


def import_factory(kind: str, name: str, makes: str) -> Callable[..., Any]:
    """What `package.module:factory` names: anybody's own part, without a row in a table.

    Modules in the current folder are found as by `python -m`: an installed command does not look there by itself.

    Args:
        kind: Of the part, for messages.
        name: With a colon.
        makes: What the factory must make, for messages.

    Raises:
        ConfigError: No such module or attribute, or the module fails while it is imported.
    """
    module_name, _, attribute = name.partition(":")
    try:
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
        factory = getattr(import_module(module_name), attribute)
    except Exception as error:  # the module is the user's: whatever it raises is about what was given
        raise ConfigError(
            f"{kind} {name!r} must be package.module:factory that can be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(factory):
        raise ConfigError(f"{kind} {name!r} is {factory!r}; it must be a function or class that makes {makes}")
    return factory  # type: ignore[no-any-return]
