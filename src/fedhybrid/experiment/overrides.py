"""Settings that replace a recipe's: `train.lr=0.01` on the command line, `{"train.lr": 0.01}` in Python."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fedhybrid.errors import ConfigError

__all__ = ["apply_overrides", "override_variant"]

# A part's options mean nothing to another part: they go when the part is replaced.
_OPTIONS_OF = {"method": "method_options", "policy": "policy_options", "model": "model_options"}
# Ways to say one thing: the one that is set takes the place of the others.
_INSTEAD = (("train.epochs", "train.steps", "train.samples"), ("pretrain.epochs", "pretrain.steps"))


def apply_overrides(recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with `overrides` put in; keys are dotted paths, or nested tables, or both.

    An override that replaces the method, policy or model drops the recipe's options for the old one; one of
    train.epochs, train.steps and train.samples drops the recipe's other two.

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
    for path in _replaced_by(settings):
        table, _, key = path.partition(".")
        if isinstance(merged.get(table), dict):
            merged[table].pop(key, None)
    problems = [problem for path, value in settings.items() if (problem := _set(merged, path, value))]
    if problems:
        raise ConfigError(problems)
    return merged


def _set(merged: dict[str, Any], path: str, value: Any) -> str | None:
    """Puts a setting into its table, or says why that cannot be done."""
    *tables, key = path.split(".")
    target: Any = merged
    for depth, name in enumerate(tables, start=1):
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            above = ".".join(tables[:depth])
            if isinstance(target, list):
                return (
                    f"{path} cannot be set: {above} is a list, and lists are replaced whole; edit the recipe, or give "
                    f"all of {above}"
                )
            return f"{path} cannot be set: {above} is no table"
    target[key] = copy.deepcopy(value)
    return None


def _replaced_by(settings: Mapping[str, Any]) -> list[str]:
    """What says the same thing in another way as one of `settings`, and none of them."""
    chosen = [paths for paths in _INSTEAD if any(path in settings for path in paths)]
    return [path for paths in chosen for path in paths if path not in settings]


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
    beaten = (*forced, *_replaced_by(forced))
    own = {path: value for path, value in own.items() if not any(_is_below(path, above) for above in beaten)}
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
