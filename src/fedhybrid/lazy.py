"""Names of a package that are imported when they are first used, so that a process holds only what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fedhybrid.collection import collection_paused

__all__ = ["lazily"]


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562) for names that live in modules of it.

    A name must not be that of a module beside it: importing the module would set the package's attribute to it.

    Args:
        package: Its `__name__`.
        homes: The module of each name, from the package on.

    >>> lazily("fedhybrid", {"lookup": "registry"})("lookup").__module__
    'fedhybrid.registry'
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with collection_paused():
            return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find
