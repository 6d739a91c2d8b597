"""The cells of a comparison: each recipe at each point of its grid, with its variants.

`[compare.grid]` has lists. `"data.alpha" = [0.1, 0.5]` names a setting and its values. A list of tables that have a
`label` names alternatives, each with settings of its own, as a variant has:

    [[compare.grid.fleet]]
    label = "weak"
    "fleet.tiers" = [{ name = "25%", budget = "25%", device = "raspberry-pi-4" }]

Cells are all combinations. What a variant says itself wins over the grid, what the command line says over both.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fedhybrid.errors import ConfigError
from fedhybrid.experiment.check import load_config, to_table, variants_of
from fedhybrid.experiment.config import CompareTable, RunConfig
from fedhybrid.experiment.overrides import apply_overrides, override_variant
from fedhybrid.experiment.recipes import Recipe, read_recipe

__all__ = ["Cell", "cells_of"]

_ODD = re.compile(r"[^\w.]+")  # letters of all alphabets may stay
_EXAMPLE = '[[compare.grid.fleet]] with label = "weak" and "fleet.tiers" = [...]'


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Runs that are compared with each other: all variants of one recipe at one point of its grid.

    Attributes:
        label: For people: "scratch, alpha 0.1, weak".
        folder: The same as a folder's name.
        recipe: Name of the recipe.
        settings: What the grid changes in it.
        targets: Accuracies whose times are told, ascending.
        reference: The variant with which the others are compared.
        oracle: The variant without limits, if there is one.
        apart: Further variants that get no place among the others.
        effects: Two variants that differ in one thing, by what that is.
        variants: The complete configuration of each, with the first seed.
    """

    label: str
    folder: str
    recipe: str
    settings: Mapping[str, Any]
    targets: tuple[float, ...]
    reference: str | None
    oracle: str | None
    apart: tuple[str, ...]
    effects: Mapping[str, tuple[str, str]]
    variants: Mapping[str, RunConfig]

    @property
    def first_seed(self) -> int:
        """The recipe's own; further ones count on from it."""
        return next(iter(self.variants.values())).seed


def cells_of(recipes: Mapping[str, Recipe], overrides: Mapping[str, Any] | None = None) -> list[Cell]:
    """All cells of these recipes, those of one recipe together.

    Args:
        recipes: By name.
        overrides: Settings that replace the recipes', their variants' and their grids', by dotted path.

    Raises:
        ConfigError: Every problem of every recipe, its variants and its grid; labels that clash.
    """
    cells: list[Cell] = []
    problems: list[str] = []
    for name, recipe in recipes.items():
        try:
            cells += _cells(name, recipe, overrides or {})
        except ConfigError as error:
            several = len(recipes) > 1
            problems += [f"{name}: {problem}" if several else problem for problem in error.problems]
    if problems or (problems := _clashes(cells)):
        raise ConfigError(problems)
    return cells


def _cells(name: str, recipe: Recipe, overrides: Mapping[str, Any]) -> list[Cell]:
    raw = read_recipe(recipe)
    compare = load_config(raw, overrides).compare
    problems, cells = [], []
    for point in _points(raw, compare, overrides):
        try:
            config = load_config(apply_overrides(raw, point.settings), overrides)
        except ConfigError as error:
            problems += [f"compare.grid: {problem}" for problem in error.problems]
            continue
        variants = variants_of(config) or {config.method.rpartition(":")[2]: config}
        problems += [
            f"compare.variants.{label} sets the seed, which all variants share; leave it out, and say --seeds"
            for label, variant in variants.items()
            if variant.seed != config.seed
        ]
        label = ", ".join([name, *point.labels])
        cells.append(
            Cell(
                label=label,
                folder=_ODD.sub("-", label).strip("-.") or f"cell-{sha256(label.encode()).hexdigest()[:8]}",
                recipe=name,
                settings=point.settings,
                targets=tuple(sorted(set(compare.targets or ()))),
                reference=compare.reference,
                oracle=compare.oracle,
                apart=tuple(compare.apart or ()),
                effects={name: (pair[0], pair[1]) for name, pair in (compare.effects or {}).items()},
                variants=variants,
            )
        )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return cells


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One value of each axis."""

    labels: tuple[str, ...]
    settings: dict[str, Any]


def _points(raw: Mapping[str, Any], compare: CompareTable, overrides: Mapping[str, Any]) -> list[_Point]:
    """All points of the grid; settings that `overrides` decide are no axes."""
    problems: list[str] = []
    axes = []
    for path, values in _lists(compare.grid or {}):
        found = list(_alternatives(path, values, problems))
        left = [(label, override_variant(settings, overrides, raw)) for label, settings in found]
        if any(settings for _, settings in left):
            axes.append(left)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    points = []
    for chosen in itertools.product(*axes):
        labels, settings = tuple(label for label, _ in chosen), {k: v for _, own in chosen for k, v in own.items()}
        points.append(_Point(labels=labels, settings=settings))
    return points


def _lists(grid: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Everything in the grid that is no table, by its dotted path; what the command line sets comes as tables."""
    found: dict[str, Any] = {}
    for key, value in sorted(grid.items(), key=lambda item: isinstance(item[1], Mapping)):
        found |= dict(_lists(value, f"{prefix}{key}.")) if isinstance(value, Mapping) else {prefix + key: value}
    return list(found.items())


def _alternatives(path: str, values: Any, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The label and the settings of each value of an axis."""
    where = f"compare.grid.{path}"
    if not isinstance(values, list) or not values:
        problems.append(f"{where} must be a list of values, got {values!r}")
        return
    if all(isinstance(value, Mapping) for value in values):
        found = [(value.get("label"), {k: v for k, v in value.items() if k != "label"}) for value in values]
    elif any(isinstance(value, (Mapping, list)) for value in values):
        problems.append(f"{where}: values that are lists or tables need labels, as in {_EXAMPLE}")
        return
    else:
        short = path.rpartition(".")[2]
        found = [(f"{short} {_shown(value)}", {path: value}) for value in values]
    labels: set[str] = set()
    for label, settings in found:
        if not isinstance(label, str) or not label.strip():
            problems.append(f"{where}: every alternative needs a label, as in {_EXAMPLE}")
        elif label.casefold() in labels:
            problems.append(f"{where}: {label!r} is there twice")
        elif any(_own(setting) for setting in settings):
            problems.append(f"{where}: neither the seed nor what is compared can be an axis; say --seeds")
        else:
            labels.add(label.casefold())
            yield label, settings


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _own(setting: str) -> bool:
    return setting.partition(".")[0] in ("seed", "compare")


def _clashes(cells: list[Cell]) -> list[str]:
    """Labels that would share a folder, also where capitals make no difference, and cells that are the same."""
    problems: list[str] = []
    folders: dict[str, Cell] = {}
    for cell in cells:
        other = folders.setdefault(cell.folder.casefold(), cell)
        if other is not cell:
            problems.append(f"the cells {other.label!r} and {cell.label!r} would share a folder; give other labels")
        seen: dict[str, str] = {}
        same: dict[str, str] = {}
        for label, config in cell.variants.items():
            if (twin := seen.setdefault(label.casefold(), label)) != label:
                problems.append(f"{cell.recipe}: the variants {twin!r} and {label!r} would share a folder; rename one")
            if (twin := same.setdefault(json.dumps(to_table(config), sort_keys=True), label)) != label:
                problems.append(
                    f"{cell.label}: the variants {twin!r} and {label!r} would run the same; take one away, or what "
                    "makes them equal (a setting of the grid or of the command line)"
                )
        problems += _oracle_problems(cell)
    for one, two in itertools.combinations(cells, 2):
        if one.variants.keys() == two.variants.keys() and _tables(one) == _tables(two):
            problems.append(f"the cells {one.label!r} and {two.label!r} would run the same; take one away")
    return list(dict.fromkeys(problems))


def _oracle_problems(cell: Cell) -> list[str]:
    """An oracle on other devices shows what these are worth, not what the limits cost."""
    others = [label for label in cell.variants if label != cell.oracle]
    if cell.oracle is None or not others:
        return []
    other = cell.reference or others[0]
    own, theirs = (_devices(cell.variants[label]) for label in (cell.oracle, other))
    if own == theirs:
        return []
    return [
        f"{cell.label}: the oracle {cell.oracle!r} may differ from the others in budgets only, but it has {own}, and "
        f'{other!r} has {theirs}. "fleet.budget" = "100%" lifts the budgets of whatever tiers there are'
    ]


def _devices(config: RunConfig) -> str:
    tiers = [f"{tier.device} (share {tier.share:g}, spread {tier.speed_spread:g})" for tier in config.fleet.tiers]
    return ", ".join(tiers)


def _tables(cell: Cell) -> list[dict[str, Any]]:
    return [to_table(config) for config in cell.variants.values()]
