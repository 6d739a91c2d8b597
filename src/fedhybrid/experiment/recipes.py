"""Recipes as they stand in their files: TOML, perhaps with another recipe below."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhybrid.errors import ConfigError
from fedhybrid.experiment.overrides import apply_overrides

__all__ = ["Recipe", "read_recipe"]

Recipe = str | Path | Mapping[str, Any]

_BASE = "base"


def read_recipe(recipe: Recipe) -> Mapping[str, Any]:
    """What stands in a recipe, unchecked; with `base = "other.toml"`, that recipe with this one's settings put in.

    Settings replace those of the base as overrides do (`apply_overrides`): tables are merged, lists are replaced, and
    an empty table empties; a variant's settings replace those of the base's variant of that label. The base may have a
    base itself. Its path is seen from the folder of the recipe that names it; a recipe that is no file is seen from the
    current folder.

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
        above = (*above, Path(recipe).resolve())
    if _BASE not in raw:
        return raw
    base = raw[_BASE]
    if not isinstance(base, str):
        raise ConfigError(f"base must be the path of another recipe, got {base!r}")
    if (folder / base).resolve() in above:
        raise ConfigError(
            f"recipe {folder / base} is its own base: {' -> '.join(path.name for path in above)} -> {base}"
        )
    own = {key: value for key, value in raw.items() if key != _BASE}
    return _put_in(_read(folder / base, above), own)


def _put_in(base: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The base with a recipe's own settings; variants one by one, since a label's dots are no path."""
    above = _variants(own)
    if not above:
        return apply_overrides(base, own)
    compare = {key: value for key, value in own["compare"].items() if key != "variants"}
    rest = {key: value for key, value in own.items() if key != "compare"}
    merged = apply_overrides(base, rest | ({"compare": compare} if compare else {}))
    below = _variants(merged)
    variants = {**below, **{label: _variant(below.get(label), each) for label, each in above.items()}}
    return merged | {"compare": {**_table(merged, "compare"), "variants": variants}}


def _variants(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of each variant by its label."""
    return _table(_table(raw, "compare"), "variants")


def _table(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = raw.get(name)
    return found if isinstance(found, Mapping) else {}


def _variant(base: Any, own: Any) -> Any:
    """What both say of one variant; what is no table is left to the check of the whole."""
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
