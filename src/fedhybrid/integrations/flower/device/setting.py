"""What a device takes from a server's brief, checked: names that it knows, options that they take, nothing to execute.

A brief is a recipe (`brief.brief_of`) that came over the network. Names of code (`package.module:factory`) and of data
sets to be downloaded ("flwr:...") are refused unless the device's own user has allowed the very name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fedhybrid.data import HUB_PREFIX, PARTITIONS, find_loader
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.material import base_optimizer, traffic_of
from fedhybrid.experiment.messages import recipe_problem
from fedhybrid.experiment.options import check_options
from fedhybrid.methods import find_method
from fedhybrid.models import FROM_DATA, find_factory
from fedhybrid.protocols import Method, Optimizer
from fedhybrid.registry import lookup

__all__ = ["batch_layout", "config_of", "example_batch", "method_of", "optimizer_of", "step_setting"]

# What decides the step and so its programs; the rest of a brief may change without a new one.
_OF_THE_STEP = ("model", "model_options", "method", "method_options", "train", "seed")


def config_of(brief: Mapping[str, Any], *, allow: Collection[str] = ()) -> RunConfig:
    """The checked configuration of a brief, all options filled in.

    Args:
        brief: As it came.
        allow: Names of code and of data sets elsewhere that the device's user trusts.

    Raises:
        ConfigError: Everything that is wrong with it, or not allowed.
    """
    try:
        config = RunConfig.model_validate(dict(brief))
    except ValidationError as error:
        raise ConfigError([f"the server's recipe: {recipe_problem(found)}" for found in error.errors()]) from error
    problems: list[str] = []
    named = {"model": config.model, "method": config.method, "dataset": config.dataset}
    for part, name in named.items():
        elsewhere = ":" in name  # "flwr:..." has one, too
        if elsewhere and name not in allow:
            what = "downloads data" if name.startswith(HUB_PREFIX) else "is code that this device would run"
            problems.append(
                f"the server's recipe: {part} {name!r} {what}, and this device's user has not allowed it; join with "
                f"--allow {name} if you trust it"
            )
    options: dict[str, dict[str, Any]] = {}
    if not problems:
        problems += _attempt(find_loader, config.dataset) + _attempt(
            lookup, "partition", PARTITIONS, config.data.partition
        )
        options = {
            "model": _options("model", config.model, find_factory, config.model_options, problems),
            "method": _options("method", config.method, find_method, config.method_options, problems),
        }
    if not problems:
        problems += _attempt(lambda: traffic_of(config, differences=method_of(config).differences))
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update={f"{part}_options": values for part, values in options.items()})


def _options(
    part: str, name: str, find: Callable[[str], Callable[..., Any]], given: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """The options of a part with its defaults; what is wrong goes to `problems`."""
    try:
        taker = find(name)
    except ConfigError as error:
        problems += error.problems
        return {}
    of, where = f"{part} {name!r}", f"{part}_options"
    checked = check_options(taker, given, where=where, of=of, not_options=FROM_DATA)
    problems += checked.problems
    if part == "method" and checked.sound is not None:
        problems += _attempt(taker, **checked.sound)
    return checked.values


def _attempt(action: Callable[..., object], *args: Any, **kwargs: Any) -> list[str]:
    try:
        action(*args, **kwargs)
    except ConfigError as error:
        return list(error.problems)
    return []


def method_of(config: RunConfig) -> Method:
    """The method whose client this is."""
    return find_method(config.method)(**config.method_options)


def optimizer_of(config: RunConfig, method: Method) -> Optimizer:
    """The clients' optimizer under this method."""
    return method.optimizer(base_optimizer(config.train))


def batch_layout(batch: tuple[Tensor, Tensor]) -> list[list[Any]]:
    """Shape, strides and type of the two tensors of a batch, as JSON."""
    return [[list(t.shape), list(t.stride()), str(t.dtype).removeprefix("torch.")] for t in batch]


def example_batch(layout: list[list[Any]]) -> tuple[Tensor, Tensor]:
    """A batch of zeros of that layout: what a step costs depends on no value."""
    first, second = (
        torch.empty_strided(tuple(shape), tuple(stride), dtype=getattr(torch, dtype)).zero_()
        for shape, stride, dtype in layout
    )
    return first, second


def step_setting(
    config: RunConfig, *, input_shape: tuple[int, ...], classes: int, tokens: int | None, batch: Any
) -> dict[str, Any]:
    """All that a captured step depends on, as JSON.

    Args:
        config: Of the run.
        input_shape: Of one sample.
        classes: How many there are.
        tokens: How many different ones a text has.
        batch: Its layout (`batch_layout`).
    """
    table = config.model_dump(mode="json", exclude_none=True)
    chosen = {name: table[name] for name in _OF_THE_STEP}
    return {"recipe": chosen | {"dataset": config.dataset}, "input_shape": list(input_shape), "classes": classes,
            "tokens": tokens, "batch": batch}  # fmt: skip
