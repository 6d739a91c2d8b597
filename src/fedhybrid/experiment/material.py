"""What both sides make of a recipe, server and device: the deal of the data, the model, the optimizer, the pipelines.

Nothing here needs capture, planner or solvers, so a device can import it.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhybrid.data import Dataset, Shards, Split, partition_data
from fedhybrid.data.chosen import check_classes
from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, Adam, AdamW
from fedhybrid.experiment.config import RunConfig, TrainTable
from fedhybrid.fleet import deal_tiers
from fedhybrid.models import build_model
from fedhybrid.protocols import Method, Optimizer
from fedhybrid.seeds import derive_seed
from fedhybrid.updates import Pipeline, parse_pipeline

__all__ = ["adapted", "base_optimizer", "dealt", "initial_model", "sample_of", "traffic_of"]

_SAMPLES = 64

# Made for what training has changed: of whole weights, top-k would set most to zero, and clip would shrink the rest.
_FOR_DIFFERENCES = ("clip", "error-feedback", "top-k")
_UP_ONLY = ("delta", *_FOR_DIFFERENCES)


def base_optimizer(train: TrainTable) -> Optimizer:
    """The configured optimizer, as a method may still wrap it."""
    if train.optimizer == "adam":
        return Adam(lr=train.lr, weight_decay=train.weight_decay)
    if train.optimizer == "adamw":
        return AdamW(lr=train.lr, weight_decay=train.weight_decay)
    return SGD(lr=train.lr, momentum=train.momentum, nesterov=train.nesterov, weight_decay=train.weight_decay)


def dealt(config: RunConfig, dataset: Dataset) -> Shards:
    """Who holds which training samples.

    Raises:
        ConfigError: More clients than samples, a partition that this data set has not, classes that it has not.
    """
    return partition_data(
        config.data.partition,
        dataset.train.labels.numpy(),
        clients=config.data.clients,
        seed=config.seed,
        alpha=config.data.alpha,
        shards_per_client=config.data.shards_per_client,
        samples_per_client=config.data.samples_per_client,
        natural_ids=dataset.natural_ids,
        holders=_holders(config, dataset),
    )


def _holders(config: RunConfig, dataset: Dataset) -> dict[int, NDArray[np.bool_]]:
    """Of each class that some tiers hold alone, the clients in them."""
    tiers, alone = config.fleet.tiers, config.data.alone_classes
    if not alone:
        return {}
    check_classes(dataset, alone, where="data.alone_classes")
    tier_of = deal_tiers([tier.share for tier in tiers], config.data.clients, config.seed)
    named = [number for number, tier in enumerate(tiers) if tier.name in (config.data.alone_tiers or ())]
    return dict.fromkeys(alone, np.isin(tier_of, named))


def initial_model(config: RunConfig, *, input_shape: tuple[int, ...], classes: int, tokens: int | None) -> nn.Module:
    """The model as every run of this seed begins with it.

    Raises:
        ConfigError: It does not take such data.
    """
    return build_model(
        config.model,
        input_shape=input_shape,
        classes=classes,
        tokens=tokens,
        seed=derive_seed(config.seed, purpose="model"),
        options=config.model_options,
    )


def sample_of(split: Split, seed: int) -> Tensor:
    """Inputs of some samples, always the same ones: a method may look at their ranges."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(derive_seed(seed, purpose="sample")))
    return split.batch(order[:_SAMPLES])[0]


def adapted(method: Method, model: nn.Module, sample: Tensor) -> nn.Module:
    """The global model: what the method makes of the recipe's, which is left as it is."""
    given = copy.deepcopy(model)
    made = method.adapt(given, sample)
    return model if made is given else made.train()


def traffic_of(config: RunConfig, *, differences: bool) -> tuple[Pipeline, Pipeline]:
    """What models and what updates go through: down, then up.

    Args:
        config: Of the run.
        differences: Whether the method's updates are differences already (`Method.differences`).

    Raises:
        ConfigError: Transforms that do not exist, have no such options, do not go together, or make no sense of what
            travels that way.
    """
    problems: list[str] = []
    pipelines = []
    for where, tables in (("traffic.down", config.traffic.down), ("traffic.up", config.traffic.up)):
        try:
            pipelines.append(parse_pipeline(tables, where=where))
        except ConfigError as error:
            problems += error.problems
    # A client that was not in the last cohort has no model that a difference could be added to, nor an error to feed.
    problems += [
        f"traffic.down[{number}]: {table['name']!r} is for updates, and down go whole models, to clients that have "
        "none yet; take it out (only 'quantise' can stay), or move it to traffic.up"
        for number, table in enumerate(config.traffic.down)
        if table.get("name") in _UP_ONLY
    ]
    if not differences and not any(table.get("name") == "delta" for table in config.traffic.up):
        problems += [
            f"traffic.up[{number}]: {table['name']!r} is for what training has changed, and method {config.method!r} "
            'sends whole weights; put { name = "delta" } before it'
            for number, table in enumerate(config.traffic.up)
            if table.get("name") in _FOR_DIFFERENCES
        ]
    if problems:
        raise ConfigError(problems)
    return pipelines[0], pipelines[1]
