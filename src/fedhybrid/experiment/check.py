"""From a recipe to a checked configuration in which every option is filled in; all problems are found together."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedhybrid.data import ALONE_PARTITIONS, PARTITIONS, find_loader, load_dataset
from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.executor import ACTIONS
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.material import traffic_of
from fedhybrid.experiment.messages import recipe_problem
from fedhybrid.experiment.options import check_options
from fedhybrid.experiment.overrides import apply_overrides, override_variant
from fedhybrid.experiment.parts import check_devices, faults_of, planning_of, schedule_of
from fedhybrid.experiment.recipes import Recipe, read_recipe
from fedhybrid.experiment.samples import pretrain_problems
from fedhybrid.fleet import AvailabilitySpec, DelaySpec, MemorySpec, TraceSpec
from fedhybrid.methods import find_method
from fedhybrid.models import FROM_DATA, find_factory
from fedhybrid.planner import SOLVERS
from fedhybrid.registry import lookup
from fedhybrid.selection import POLICIES

__all__ = ["Recipe", "config_toml", "load_config", "to_table", "variants_of"]

Overrides = Mapping[str, Any]

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED_LABELS = ("figures", "plans")  # folders beside the variants'


def load_config(recipe: Recipe, overrides: Overrides | None = None) -> RunConfig:
    """The complete configuration: recipe, overrides, and the default of everything else.

    Args:
        recipe: A TOML file, or its content as nested mappings.
        overrides: Settings that replace the recipe's, by dotted path; in every variant, too.

    Raises:
        ConfigError: Every problem of the recipe and of its variants.
    """
    raw = _overridden(read_recipe(recipe), overrides or {})
    config, problems = _checked(raw)
    for label, settings in _variant_settings(raw).items():
        if not _LABEL.fullmatch(label) or label in _RESERVED_LABELS:
            problems.append(
                f"compare.variants: {label!r} cannot be a folder's name; use letters, digits, '-', '_', '.'"
            )
        try:
            _, found = _checked(_variant(raw, settings))
        except ConfigError as error:
            found = list(error.problems)
        problems += [f"compare.variants.{label}: {problem}" for problem in found if problem not in problems]
    if config is None or problems:
        raise ConfigError(problems)
    return config


def variants_of(config: RunConfig) -> dict[str, RunConfig]:
    """The configuration of each variant by its label; empty where the recipe compares nothing."""
    table = to_table(config)
    found = {}
    for label, settings in _variant_settings(table).items():
        checked, problems = _checked(_variant(table, settings))
        assert checked is not None, problems
        found[label] = checked
    return found


def to_table(config: RunConfig) -> dict[str, Any]:
    """The configuration as TOML knows it: nested tables, nothing that is None."""
    return config.model_dump(exclude_none=True)


def config_toml(recipe: Recipe, overrides: Overrides | None = None) -> str:
    """The complete configuration as TOML text, which is a recipe again.

    Raises:
        ConfigError: As `load_config`.
    """
    return tomli_w.dumps(to_table(load_config(recipe, overrides)))


def _overridden(recipe: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """The recipe with `overrides` put in, which win over the variants' own settings."""
    raw = apply_overrides(recipe, overrides)
    if settings := _variant_settings(raw):
        beside = {label: override_variant(own, overrides, recipe) for label, own in settings.items()}
        variants = _table(_table(raw, "compare"), "variants")
        raw["compare"] = raw["compare"] | {"variants": {**variants, **beside}}
    return raw


def _variant_settings(raw: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What each variant changes, by its label; tables of a wrong type are left out (the check of the whole says it)."""
    variants = _table(_table(raw, "compare"), "variants")
    return {label: settings for label, settings in variants.items() if isinstance(settings, Mapping)}


def _variant(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of one variant."""
    return apply_overrides({key: value for key, value in raw.items() if key != "compare"}, settings)


def _checked(raw: Mapping[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """The configuration with all options filled in, or None; and every problem that can be seen without data."""
    problems: list[str] = []
    config: RunConfig | None = None
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems += [recipe_problem(found) for found in error.errors()]
    config = config and _with_one_budget(config)
    resolved = {name: _part_options(name, raw, problems) for name in ("method", "policy", "model")}
    problems += _name_problems(raw)
    if config is not None:
        if not any(problem.startswith(("planner.", "unknown solver", "unknown action")) for problem in problems):
            problems += [f"planner: {problem}" for problem in _attempt(planning_of, config.planner)]
        tables = (
            ("memory", MemorySpec, config.fleet.memory),
            ("availability", AvailabilitySpec, config.fleet.availability),
            ("delays", DelaySpec, config.fleet.delays),
        )
        found = [problem for name, spec, given in tables for problem in _spec_problems(name, spec, given)]
        problems += found or _attempt(check_devices, config)
        problems += _alone_problems(config)
        differences = True  # where the method is not known, nothing is said of what does not suit it
        if not any(problem.startswith(("method", "unknown method")) for problem in problems):
            problems += _attempt(schedule_of, config)
            method = find_method(config.method)(**config.method_options)
            differences = method.differences
            if method.transport(0) is not None and (config.traffic.up or config.traffic.down):
                problems.append(
                    f"traffic: method {config.method!r}, with the options that it has here, says itself what goes over "
                    "the links; take [traffic] out of the recipe"
                )
        problems += pretrain_problems(config)
        problems += _attempt(faults_of, config) + _attempt(traffic_of, config, differences=differences)
        if config.fleet.clients_per_round > config.data.clients:
            problems.append(
                f"fleet.clients_per_round must be at most data.clients, which is {config.data.clients}, got "
                f"{config.fleet.clients_per_round}"
            )
    if problems:
        problems += _data_problems(raw)
        return None, problems
    assert config is not None
    return _with_whole_paths(config).model_copy(
        update={f"{name}_options": values for name, values in resolved.items()}
    ), problems


def _with_one_budget(config: RunConfig) -> RunConfig:
    """Each tier with the budget that all have, where `fleet.budget` says one; nothing else needs to know of it."""
    fleet = config.fleet
    if fleet.budget is None:
        return config
    tiers = [tier.model_copy(update={"budget": copy.deepcopy(fleet.budget)}) for tier in fleet.tiers]
    return config.model_copy(update={"fleet": fleet.model_copy(update={"tiers": tiers})})


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Files that the recipe names, found from any folder."""
    tiers = [tier.model_copy(update={"device": _absolute(tier.device)}) for tier in config.fleet.tiers]
    tables = {name: _with_whole_file(getattr(config.fleet, name)) for name in ("memory", "availability")}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": _whole(config.data.root)}),
            "fleet": config.fleet.model_copy(update={"tiers": tiers, **tables}),
            "failures": config.failures.model_copy(update={"trace": _whole(config.failures.trace)}),
            "pretrain": config.pretrain
            and config.pretrain.model_copy(
                update={name: _whole(getattr(config.pretrain, name)) for name in ("weights", "root")}
            ),
        }
    )


def _with_whole_file(table: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return table if table is None or "file" not in table else {**table, "file": _whole(table["file"])}


def _whole(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _alone_problems(config: RunConfig) -> list[str]:
    """What does not go together where some tiers hold classes alone."""
    data, names = config.data, [tier.name for tier in config.fleet.tiers]
    problems = [
        f"data.alone_tiers must name tiers of the fleet ({', '.join(names)}), got {name!r}"
        for name in data.alone_tiers or ()
        if name not in names
    ]
    if data.alone_classes and not data.alone_tiers:
        problems.append("data.alone_classes needs data.alone_tiers: the tiers whose devices hold these classes alone")
    if data.alone_classes and data.partition not in ALONE_PARTITIONS:
        problems.append(
            f"data.alone_classes needs data.partition to be one of {', '.join(ALONE_PARTITIONS)}, got "
            f"{data.partition!r}"
        )
    return problems


def _spec_problems(name: str, spec: Callable[..., Any], given: Mapping[str, Any] | None) -> list[str]:
    """Options of a table of the fleet that are none, or of another type."""
    if given is None:
        return []
    where, trace = f"fleet.{name}", given.get("trace")
    plain = {key: value for key, value in given.items() if key != "trace"}
    problems = check_options(spec, plain if isinstance(trace, Mapping) else given, where=where, of=where).problems
    if isinstance(trace, Mapping):
        problems += check_options(TraceSpec, trace, where=f"{where}.trace", of="a random trace").problems
    return problems


def _absolute(device: str) -> str:
    """A device's name, or the whole path of its own profile, so that it is found from any folder."""
    return str(Path(device).absolute()) if device.endswith(".toml") else device


def _part_options(part: str, raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The options of the method, the policy or the model with their defaults; what is wrong goes to `problems`."""
    name = raw.get(part, RunConfig.model_fields[part].default)
    given = raw.get(f"{part}_options", {})
    if not isinstance(name, str) or not isinstance(given, Mapping):
        return {}  # said already
    try:
        taker: Callable[..., Any]
        if part == "model":
            taker = find_factory(name)
        else:
            taker = find_method(name) if part == "method" else lookup(part, POLICIES, name)
    except ConfigError as error:
        problems += [f"{part}: {problem}" for problem in error.problems]
        return {}
    checked = check_options(taker, given, where=f"{part}_options", of=f"{part} {name!r}", not_options=FROM_DATA)
    problems += checked.problems
    if part != "model" and checked.sound is not None:
        problems += [f"{part}_options: {problem}" for problem in _attempt(taker, **checked.sound)]
    return checked.values


def _name_problems(raw: Mapping[str, Any]) -> list[str]:
    """Names that stand for no row of their table."""
    dataset = raw.get("dataset")
    problems = _attempt(find_loader, dataset) if isinstance(dataset, str) else []
    for path, table, name in (
        ("data.partition", PARTITIONS, _table(raw, "data").get("partition")),
        ("planner.solver", {"auto": None, **SOLVERS}, _table(raw, "planner").get("solver")),
    ):
        if isinstance(name, str):
            problems += _attempt(lookup, path.rpartition(".")[2], table, name)
    actions = _table(raw, "planner").get("actions")
    for name in actions if isinstance(actions, list) else ():
        if isinstance(name, str):
            problems += _attempt(lookup, "action", dict.fromkeys(ACTIONS), name)
    return problems


def _data_problems(raw: Mapping[str, Any]) -> list[str]:
    """A missing folder, said together with other problems; where there are none, loading the data will say it."""
    name, root = raw.get("dataset"), _table(raw, "data").get("root")
    if not isinstance(name, str) or _attempt(find_loader, name) or not (root is None or isinstance(root, str)):
        return []
    if root is not None and Path(root).is_dir():
        return []
    return _attempt(load_dataset, name, None if root is None else Path(root))


def _table(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = raw.get(name, {})
    return found if isinstance(found, Mapping) else {}


def _attempt(action: Callable[..., object], *args: Any, **kwargs: Any) -> list[str]:
    """What `action` complains about."""
    try:
        action(*args, **kwargs)
    except ConfigError as error:
        return list(error.problems)
    except FedHybridError as error:
        return [str(error)]
    return []
