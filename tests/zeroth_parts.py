"""Small networks for training without gradients, their submodels, and clients that run them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedhybrid.data import Split, load_dataset
from fedhybrid.engine.runtime import LocalClient, Station, Stretch, classification_loss
from fedhybrid.executor import SGD, PreparedStep, TrainStep, prepare_step
from fedhybrid.methods.foresight_zo import ForesightZo
from fedhybrid.methods.zeroth import Stepper, masked, masked_names, masks_of
from fedhybrid.models import build_model
from fedhybrid.protocols import Submodel
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import Tensors, buffers_of, detached_copy, load_into, tensors_of

BATCH = 6


def pooled_mlp(input_shape: tuple[int, ...], classes: int, hidden: int = 16, pool: int = 8) -> nn.Sequential:
    """The mean of each square of pixels, a hidden layer, a classifier; a forward pass takes no time."""
    pixels = input_shape[0] * (input_shape[1] // pool) * (input_shape[2] // pool)
    return nn.Sequential(
        nn.AvgPool2d(pool), nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def wide_mlp(input_shape: tuple[int, ...], classes: int, hidden: int = 256) -> nn.Sequential:
    """The mean of each square of 4 pixels and two hidden layers with group norm: 86,026 parameters on the digits."""
    pixels = input_shape[0] * (input_shape[1] // 4) * (input_shape[2] // 4)
    return nn.Sequential(
        nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(pixels, hidden), nn.GroupNorm(8, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.GroupNorm(8, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


def tiny_convs(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Two convolutions with group norm and a classifier of two layers: 412 weights that may be pruned."""
    return nn.Sequential(
        nn.AvgPool2d(4), nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.GroupNorm(2, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, classes, bias=False), nn.LayerNorm(classes), nn.Linear(classes, classes),
    )  # fmt: skip


@functools.cache
def digits() -> Split:
    return load_dataset("digits").train


def network(name: str = "tests.zeroth_parts:tiny_convs", seed: int = 3, **options: Any) -> nn.Module:
    return build_model(name, input_shape=(1, 32, 32), classes=10, seed=seed, options=options)


def whole_of(method: ForesightZo, model: nn.Module | None = None, sample: Tensor | None = None) -> Submodel:
    """The run's own step; pruned weights are zero, as the server's are."""
    sample = digits().batch(torch.arange(BATCH))[0] if sample is None else sample
    adapted = method.adapt(network() if model is None else model, sample)
    load_into(tensors_of(adapted), masked(detached_copy(tensors_of(adapted))))
    return Submodel(module=adapted, loss_fn=classification_loss, optimizer=SGD(lr=0.1))


def prepared(method: ForesightZo, whole: Submodel, name: str, batch: int = BATCH) -> PreparedStep:
    """The captured step of a submodel."""
    made = method.submodel(whole, name)
    return prepare_step(
        made.module,
        made.loss_fn,
        digits().batch(torch.arange(batch)),
        made.optimizer,
        op_seconds=lambda work: 1e-6,
        forward_only=made.forward_only,
    )


def client_of(
    method: ForesightZo,
    whole: Submodel,
    name: str,
    samples: int = 20,
    batch: int = BATCH,
    *,
    actions: tuple[str, ...] = (),
) -> LocalClient:
    """A client that holds the first digits, at a submodel that has the whole model's weights.

    Args:
        method: Gives the submodel.
        whole: Its weights.
        name: The submodel's.
        samples: How many the client holds.
        batch: Samples of a step.
        actions: Where given, it runs the smallest plan with these.
    """
    step = prepared(method, whole, name, batch)
    train = TrainStep(step, step.smallest(actions=actions) if actions else step.keep_all())
    station = Station(step=train, tensors=tensors_of(step.model), buffers=buffers_of(step.model))
    load_into({n: t for n, t in station.tensors.items() if n in tensors_of(whole.module)}, tensors_of(whole.module))
    return LocalClient(
        station=station,
        split=digits(),
        shard=np.arange(samples),
        stretches=[Stretch(program=train.plan, steps=10**9)],
    )


def task_of(
    weights: Tensors, name: str, *, kind: str = "train", steps: int = 1, batch: int = BATCH, **options: Any
) -> ClientTask:
    """A task of the first client."""
    return ClientTask(
        round_index=0,
        client=0,
        weights=weights,
        work=LocalWork(epochs=1, batch_size=batch, lr=0.1, steps=steps),
        plan=None,
        seed=11,
        kind=kind,
        options=options,
        submodel=name,
    )


def masks_at(weights: Tensors, density: float) -> Tensors:
    """Weights whose masks keep about this share, at random."""
    generator = torch.Generator().manual_seed(4)
    kept = {
        f"{name.removesuffix('weight')}kept": torch.rand(weights[name].shape, generator=generator) < density
        for name in masked_names(weights)
    }
    return masked(weights | kept)


def kept_ratio(weights: Mapping[str, Tensor]) -> float:
    """The share of all entries under masks that stays."""
    masks = masks_of(weights).values()
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def followed(
    stepper: Stepper, weights: Tensors, extra: Tensors, tables: Sequence[Tensor], *, version: int
) -> tuple[Tensors, Tensors]:
    """What a device makes of its copy of a version and of the tables since then."""
    for number, table in enumerate(tables):
        weights, extra = stepper.step(weights, extra, table, version=version + number)
    return weights, extra


def ranks(values: Tensor) -> Tensor:
    return values.flatten().argsort().argsort().to(torch.float64)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's; of ranks it is Spearman's."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
