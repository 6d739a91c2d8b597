"""What a device must know of a recipe: the parts that decide its own work, and nothing of the server's."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["brief_of", "brief_of_run", "brief_text"]

# Who is chosen, when, and what goes wrong on purpose is the server's business; so are its files.
_OURS = ("model", "model_options", "dataset", "data", "train", "method", "method_options", "planner", "traffic", "seed")
_NEEDS: dict[str, Any] = {"policy": "uniform", "fleet": {"clients_per_round": 1}}  # for the recipe's own check


def brief_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for a device, itself a valid one.

    Args:
        config: Complete, as a run's `config.toml` holds it.
    """
    ours = {name: config[name] for name in _OURS if name in config}
    pretraining = config.get("pretrain")
    if pretraining is not None and "weights" not in pretraining:  # which samples clients go without
        ours["pretrain"] = pretraining
    return ours | _needs(config)


def _needs(config: Mapping[str, Any]) -> dict[str, Any]:
    """`_NEEDS`; where tiers hold classes alone, also which there are: a device's share of the data depends on them."""
    if not config.get("data", {}).get("alone_tiers"):
        return _NEEDS
    own = {"budget": "100%", "device": "laptop"}  # what a device can give, it knows itself
    tiers = [{"name": tier["name"], "share": tier["share"]} | own for tier in config["fleet"]["tiers"]]
    return _NEEDS | {"fleet": _NEEDS["fleet"] | {"tiers": tiers}}


def brief_text(config: Mapping[str, Any]) -> str:
    """The same as JSON; equal recipes have equal texts."""
    return json.dumps(brief_of(config), sort_keys=True)


def brief_of_run(folder: Path) -> str:
    """The same, of the run in that folder."""
    return brief_text(tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")))
