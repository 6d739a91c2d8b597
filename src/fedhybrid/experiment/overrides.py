"""Settings that replace a recipe's: `train.lr=0.01` on the command line, `{"train.lr": 0.01}` in Python."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fedhybrid.errors import ConfigError

__all__ = ["apply_overrides", "override_variant"]

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


def override_variant(
    settings: Mapping[str, Any], overrides: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """A variant's settings, changed so that `overrides` win over them too.

    Args:
        settings: What the variant changes in the recipe.
        overrides: What is changed in all variants; settings below "compare" are not meant.
        recipe: The recipe, without `overrides`.

    >>> override_variant({"method": "fedavg", "seed": 3}, {"method": "fedprox"}, {"method": "fedhybrid"})
    {'seed': 3}
    """
    forced = {path: value for path, value in _flatten(overrides).items() if path.split(".")[0] != "compare"}
    own = _flatten(settings)
    for part, options in _OPTIONS_OF.items():
        if part in forced and forced[part] != own.get(part, recipe.get(part)):
            own = {path: value for path, value in own.items() if not _is_below(path, options)}
    own = {path: value for path, value in own.items() if not any(_is_below(path, above) for above in forced)}
    # The recipe has the forced settings already; what the variant's own ones would take away again is said once more.
    replaced = [path for path in own if any(_is_below(each, path) for each in forced)]
    common = {**recipe, **forced}
    replaced += [options for part, options in _OPTIONS_OF.items() if part in own and own[part] != common.get(part)]
    again = {path: value for path, value in forced.items() if any(_is_below(path, above) for above in replaced)}
    return own | again


def _is_below(path: str, above: str) -> bool:
    """Whether `path` is `above` or inside that table."""
    return path == above or path.startswith(f"{above}.")


def _flatten(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping) and value:
            settings |= _flatten(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings
