"""Errors on their way from a variant's process to the one that started it."""

from __future__ import annotations

from typing import Any

from fedhybrid.errors import CaptureError, ConfigError, FedHybridError, InfeasibleBudgetError, PlanMismatchError

__all__ = ["from_wire", "to_wire"]

# What each error's __init__ takes; the attributes have the same names.
_FIELDS: dict[type[FedHybridError], tuple[str, ...]] = {
    CaptureError: ("operation", "reason", "advice"),
    ConfigError: ("problems",),
    InfeasibleBudgetError: ("needed_bytes", "budget_bytes", "blocker"),
    PlanMismatchError: ("expected", "found"),
}


def to_wire(error: FedHybridError) -> dict[str, Any]:
    """The error as JSON can hold it; one of another type goes as a `ConfigError` that says the same."""
    kind = type(error)
    if kind not in _FIELDS:
        return to_wire(ConfigError(str(error)))
    return {"error": kind.__name__, "fields": {name: getattr(error, name) for name in _FIELDS[kind]}}


def from_wire(content: dict[str, Any], label: str) -> FedHybridError:
    """The error again; the problems of a `ConfigError` say which variant has them.

    >>> from_wire(to_wire(ConfigError("no data")), "ours").args
    ('ours: no data',)
    """
    kind = next(each for each in _FIELDS if each.__name__ == content["error"])
    if kind is ConfigError:
        return ConfigError([f"{label}: {problem}" for problem in content["fields"]["problems"]])
    return kind(**content["fields"])
