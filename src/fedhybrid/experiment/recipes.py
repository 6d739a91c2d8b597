"""Recipes as they stand in their files: TOML, perhaps with another recipe below."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhybrid.errors import ConfigError
from fedhybrid.experiment.overrides import apply_overrides

__all__ = ["Recipe", "read_recipe"]

Recipe = str | Path | Mapping[str, Any]

_BASE = "base"
_LABELLED = ("effects", "variants")  # tables of [compare] whose keys are labels


def read_recipe(recipe: Recipe) -> Mapping[str, Any]:
    """What stands in a recipe, unchecked; with `base = "other.toml"`, that recipe with this one's settings put in.

    Settings replace those of the base as overrides do (`apply_overrides`): tables are merged, lists are replaced, and
    an empty table empties; a variant's settings replace those of the base's variant of that label, an effect the base's
    of that name. The base may have a base itself. Its path is seen from the folder of the recipe that names it; a
    recipe that is no file is seen from the current folder.

    Raises:
        ConfigError: A file that cannot be read, that is not TOML, or that is its own base.
    """
    return _read(recipe, ())


def _read(recipe: Recipe, above: tuple[Path, ...]) -> Mapping[str, Any]:
    """The recipe with its base; `above` are the files that led here, the first one first."""
    if isinstance(recipe, Mapping):
        raw, folder = recipe, Path()
    else:
        raw, folder = _parsed(Path(recipe), above), Path(recipe).parent
        above = (*above, _real(Path(recipe)))
    if _BASE not in raw:
        return raw
    base = raw[_BASE]
    if not isinstance(base, str) or "\0" in base:
        raise ConfigError(f"base must be the path of another recipe, got {base!r}")
    if _real(folder / base) in above:
        raise ConfigError(
            f"recipe {folder / base} is its own base: {' -> '.join(path.name for path in above)} -> {base}"
        )
    own = {key: value for key, value in raw.items() if key != _BASE}
    return _put_in(_read(folder / base, above), own)


def _real(path: Path) -> Path:
    """Where it leads; links that lead nowhere are left for whoever opens it."""
    return Path(os.path.realpath(path))


def _put_in(base: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The base with a recipe's own settings; what has labels one by one, since a label's dots are no path."""
    compare = _table(own, "compare")
    labelled = {name: table for name in _LABELLED if (table := _table(compare, name))}
    if not labelled:
        return apply_overrides(base, own)
    rest = {key: value for key, value in own.items() if key != "compare"}
    plain = {key: value for key, value in compare.items() if key not in labelled}
    merged = apply_overrides(base, rest | ({"compare": plain} if plain else {}))
    below = _table(merged, "compare")
    both = {name: _by_label(_table(below, name), table) for name, table in labelled.items()}
    return merged | {"compare": {**below, **both}}


def _by_label(base: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """What both say, label by label."""
    return {**base, **{label: _both(base.get(label), each) for label, each in own.items()}}


def _table(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = raw.get(name)
    return found if isinstance(found, Mapping) else {}


def _both(base: Any, own: Any) -> Any:
    """What both say of one label: settings of a variant are merged, all else is replaced (the whole is checked)."""
    if isinstance(base, Mapping) and isinstance(own, Mapping):
        return apply_overrides(apply_overrides({}, base), own)
    return own


def _parsed(path: Path, above: tuple[Path, ...]) -> Mapping[str, Any]:
    """What stands in one file."""
    for_whom = f", the base of {above[-1]}," if above else ""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path}{for_whom} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}{for_whom} is not TOML: {error}") from error
