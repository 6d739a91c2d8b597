"""Settings that replace a recipe's: `train.lr=0.01` on the command line, `{"train.lr": 0.01}` in Python."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fedhybrid.errors import ConfigError

__all__ = ["apply_overrides"]

# A part's options mean nothing to another part: they go when the part is replaced.
_OPTIONS_OF = {"method": "method_options", "policy": "policy_options", "model": "model_options"}


def apply_overrides(recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with `overrides` put in; keys are dotted paths, or nested tables, or both.

    An override that replaces the method, policy or model drops the recipe's options for the old one.

    Raises:
        ConfigError: A path leads through something that is no table; all such paths at once.

    >>> apply_overrides({"method": "fedprox", "method_options": {"mu": 1.0}}, {"method": "fedavg", "train.lr": 0.1})
    {'method': 'fedavg', 'train': {'lr': 0.1}}
    """
    merged: dict[str, Any] = copy.deepcopy(dict(recipe))
    settings = _flatten(overrides)
    for part, options in _OPTIONS_OF.items():
        if part in settings and settings[part] != merged.get(part):
            merged.pop(options, None)
    problems = []
    for path, value in settings.items():
        *tables, key = path.split(".")
        target: Any = merged
        for name in tables:
            target = target.setdefault(name, {}) if isinstance(target, dict) else None
        if isinstance(target, dict):
            target[key] = copy.deepcopy(value)
        else:
            problems.append(f"{path} cannot be set: {'.'.join(tables)} is no table")
    if problems:
        raise ConfigError(problems)
    return merged


def _flatten(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping) and value:
            settings |= _flatten(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings
