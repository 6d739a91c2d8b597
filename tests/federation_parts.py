"""Small real federations for tests: two kinds of device, the embedded digits, a narrow network."""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhybrid.data import DealtShards, Split, load_dataset
from fedhybrid.devices import load_profile
from fedhybrid.engine.labour import Attend
from fedhybrid.engine.plans import COARSE_BUCKETS, FINE_BUCKETS, PlanBook
from fedhybrid.engine.runtime import Station, Workbench, classification_loss, one_thread
from fedhybrid.executor import SGD, PlanOptions, PreparedStep, TrainStep, prepare_step
from fedhybrid.models import build_model
from fedhybrid.protocols import Method, Optimizer, Submodel
from fedhybrid.records import LocalWork
from fedhybrid.tree import Tensors, buffers_of, detached_copy, tensors_of

BATCH = 8
EXACT = PlanOptions(actions=("recompute",))
DEVICES = {name: load_profile(name) for name in ("laptop", "raspberry-pi-4")}
SHARDS = DealtShards.of([np.arange(0, 40), np.arange(40, 59), np.arange(60, 63)])
WORK = LocalWork(epochs=1, batch_size=BATCH, lr=0.05)

RECIPE: dict[str, Any] = {
    "method": "fedhybrid",
    "policy": "fedhybrid",
    "model": "resnet20",  # narrow, its smallest plan needs 38 % and is found within a second
    "dataset": "digits",
    "rounds": 3,
    "seed": 5,
    "model_options": {"width": 0.5},
    "data": {"clients": 24, "alpha": 0.5},
    "fleet": {
        "clients_per_round": 3,
        "tiers": [
            {"name": "weak", "budget": "45%", "device": "raspberry-pi-4"},
            {"name": "strong", "budget": "100%", "device": "laptop"},
        ],
    },
    "train": {"batch_size": BATCH, "lr": 0.05, "momentum": 0.5},
}


def recipe(**changes: Any) -> dict[str, Any]:
    """The small recipe with some top-level entries replaced."""
    return copy.deepcopy(RECIPE) | changes


def small_split() -> Split:
    """The digits' training half."""
    return load_dataset("digits").train


def small_model(seed: int = 0) -> nn.Module:
    """A narrow CNN on digits."""
    return build_model("cnn", input_shape=(1, 32, 32), classes=10, seed=seed, options={"width": 0.25})


def prepared_step(model: nn.Module, optimizer: Optimizer | None = None) -> PreparedStep:
    """The step of `model`, priced for a laptop."""
    batch = small_split().batch(torch.arange(BATCH))
    optimizer = optimizer or SGD(lr=0.05, momentum=0.5)
    return prepare_step(model, classification_loss, batch, optimizer, op_seconds=DEVICES["laptop"].op_time_s)


def plan_book(
    prepared: PreparedStep,
    folder: Path,
    *,
    enabled: bool = True,
    codec: str | None = None,
    buckets: int = FINE_BUCKETS,
    planning: PlanOptions = EXACT,
) -> PlanBook:
    """A plan book for both devices."""
    return PlanBook(prepared, DEVICES, folder, enabled=enabled, planning=planning, codec=codec, buckets=buckets)


def attend_of(method: Method) -> Attend:
    """The server's side of a method's tasks, where the small model is trained whole."""
    whole = Submodel(module=small_model(), loss_fn=classification_loss, optimizer=SGD(lr=0.05))
    return lambda task: None if task.kind == "evaluate" else method.attend(task, whole)


def workbench(model: nn.Module, prepared: PreparedStep, split: Split | None = None) -> Workbench:
    """A workbench at which any client can train."""
    station = Station(
        step=TrainStep(prepared, prepared.keep_all()), tensors=tensors_of(model), buffers=buffers_of(model)
    )
    return Workbench(model=model, split=split or small_split(), station=lambda submodel: station)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shop:
    """What tasks are done with, made once for all tests: preparing a step is what takes time.

    Attributes:
        prepared: The step of the narrow network.
        bench: Where it runs.
        weights: The network as it was at first.
        ladder: A plan book with few, coarse rungs.
        plain: A plan book without plans.
    """

    prepared: PreparedStep
    bench: Workbench
    weights: Tensors
    ladder: PlanBook
    plain: PlanBook


@functools.cache
def shop(optimizer: Optimizer | None = None) -> Shop:
    """The shop for this optimizer of the clients."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with one_thread():
        model = small_model()
        prepared = prepared_step(model, optimizer)
        for name in ("ladder", "plain"):
            (folder / name).mkdir()
        return Shop(
            prepared=prepared,
            bench=workbench(model, prepared),
            weights=detached_copy(tensors_of(model)),
            ladder=plan_book(prepared, folder / "ladder", buckets=COARSE_BUCKETS, planning=PlanOptions()),
            plain=plan_book(prepared, folder / "plain", enabled=False),
        )
