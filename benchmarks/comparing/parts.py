"""The settings of the headline comparison, and their parts: one for each mixture of a setting's data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedhybrid.experiment.cells import cells_of
from fedhybrid.experiment.fixing import MAY_CHANGE, described, json_ready
from fedhybrid.records import COMPARISON

__all__ = ["RECIPES", "SETTINGS", "Part", "differs_from_recipe", "parts_of", "settings_named"]

RECIPES = Path(__file__).parents[2] / "recipes/headline"
SETTINGS = ("uci-har", "fashion-mnist", "shakespeare-plays", "shakespeare-characters", "cifar10")
_MIXTURES = "data.alpha"  # in the grid of a recipe


@dataclass(frozen=True, kw_only=True)
class Part:
    """One setting with one mixture of its data.

    Attributes:
        name: Of its folder, and of its records.
        recipe: Its setting's.
        overrides: What is replaced in the recipe.
    """

    name: str
    recipe: Path
    overrides: Mapping[str, Any]

    @property
    def setting(self) -> str:
        """The name of its recipe."""
        return self.recipe.stem

    @property
    def words(self) -> list[str]:
        """The overrides as `fedhybrid compare` takes them."""
        return [f"{name}={json.dumps(value)}" for name, value in self.overrides.items()]


@cache
def parts_of(setting: str, recipes: Path = RECIPES) -> list[Part]:
    """The parts of a setting whose recipe lies in `recipes`; one of the setting's name, if its data have one mixture.

    Raises:
        ConfigError: The recipe is wrong.
    """
    recipe = recipes / f"{setting}.toml"
    mixtures = dict.fromkeys(cell.settings.get(_MIXTURES) for cell in cells_of({setting: recipe}))
    return [
        Part(name=setting, recipe=recipe, overrides={})
        if each is None
        else Part(name=f"{setting}-alpha-{each}", recipe=recipe, overrides={f"compare.grid.{_MIXTURES}": [each]})
        for each in mixtures
    ]


def differs_from_recipe(part: Part, folder: Path) -> bool:
    """Whether the comparison in `folder` is of other settings than the part's recipe has now, but for the data's place.

    Raises:
        ConfigError: The recipe is wrong.
    """
    stored = json_ready(json.loads((folder / COMPARISON).read_bytes()))
    wanted = described(cells_of({part.setting: part.recipe}, part.overrides), 1)
    return [_fixed(cell) for cell in stored["cells"]] != [_fixed(cell) for cell in wanted["cells"]]


def _fixed(cell: Mapping[str, Any]) -> Any:
    """What decides a cell's runs, and how they are told, as JSON has it; where data lie is none of it."""
    variants = {}
    for label, config in cell["variants"].items():
        data = {name: value for name, value in config.get("data", {}).items() if name != "root"}
        variants[label] = {name: value for name, value in config.items() if name not in MAY_CHANGE} | {"data": data}
    told = [cell[name] for name in ("label", "targets", "reference", "oracle")]
    return json.loads(json.dumps([*told, sorted(cell.get("apart", ())), variants]))  # tuples are lists there


def settings_named(text: str) -> list[str]:
    """For argparse: names of settings, with commas between them, in the order of `SETTINGS`."""
    given = [word.strip() for word in text.split(",")]
    if strange := [each for each in given if each not in SETTINGS]:
        raise argparse.ArgumentTypeError(f"{', '.join(strange)} is none of {', '.join(SETTINGS)}")
    return [each for each in SETTINGS if each in given]
