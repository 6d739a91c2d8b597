"""Small real federations for tests: two kinds of device, the embedded digits, a narrow network."""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhybrid.data import DealtShards, Shards, Split, load_dataset
from fedhybrid.devices import load_profile
from fedhybrid.engine.budgets import Budgets
from fedhybrid.engine.driver import InProcessDriver
from fedhybrid.engine.faults import Faults
from fedhybrid.engine.journey import JourneyPlanner
from fedhybrid.engine.labour import InThisProcess, Labour
from fedhybrid.engine.plans import COARSE_BUCKETS, FINE_BUCKETS, PlanBook
from fedhybrid.engine.runtime import Workbench, classification_loss, one_thread
from fedhybrid.engine.states import ClientStates
from fedhybrid.engine.traffic import Traffic
from fedhybrid.executor import SGD, PlanOptions, PreparedStep, TrainStep, prepare_step
from fedhybrid.fleet import AlwaysOnline, Availability, Fleet, FleetMemory, Tier, VirtualClock
from fedhybrid.methods import METHODS
from fedhybrid.models import build_model
from fedhybrid.protocols import Method, Optimizer
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import Tensors, detached_copy, tensors_of
from fedhybrid.units import parse_budget
from fedhybrid.updates import Pipeline

BATCH = 8
DEVICES = {name: load_profile(name) for name in ("laptop", "raspberry-pi-4")}
SHARDS = DealtShards.of([np.arange(0, 40), np.arange(40, 59), np.arange(60, 63)])
WORK = LocalWork(epochs=1, batch_size=BATCH, lr=0.05)
NOTHING = Pipeline(parts=())

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
) -> PlanBook:
    """A plan book for both devices."""
    planning = PlanOptions(actions=("recompute",))
    return PlanBook(prepared, DEVICES, folder, enabled=enabled, planning=planning, codec=codec, buckets=buckets)


def workbench(model: nn.Module, prepared: PreparedStep) -> Workbench:
    """A workbench at which any client can train."""
    return Workbench(model=model, step=TrainStep(prepared, prepared.keep_all()), split=small_split())


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
            ladder=plan_book(prepared, folder / "ladder", buckets=COARSE_BUCKETS),
            plain=plan_book(prepared, folder / "plain", enabled=False),
        )


def small_fleet(
    budgets: Sequence[str | int] = ("100%", "100%", "100%"),
    devices: Sequence[str] | None = None,
    *,
    availability: Availability | None = None,
    memory: FleetMemory | None = None,
    slowness: Sequence[float] | None = None,
) -> Fleet:
    """A fleet in which each client is a tier of its own."""
    names = devices or ["laptop"] * len(budgets)
    tiers = tuple(
        Tier(name=f"tier {number}", budget=parse_budget(budget), device=DEVICES[device], clients=1)
        for number, (budget, device) in enumerate(zip(budgets, names, strict=True))
    )
    return Fleet(
        tier=np.arange(len(tiers), dtype=np.int16),
        tiers=tiers,
        slowness=None if slowness is None else np.array(slowness, dtype=np.float32),
        availability=availability or AlwaysOnline(),
        memory=memory,
    )


def moving_memory(rows: Sequence[Sequence[int]], period_s: float, promised: Sequence[int] | None = None) -> FleetMemory:
    """What each client has left, in bytes, sample by sample; it promises what it has, or `promised` at any time."""
    left = np.array(rows, dtype=np.int64)
    told = left if promised is None else np.broadcast_to(np.array(promised, dtype=np.int64)[:, None], left.shape)
    return FleetMemory(
        period_s=period_s,
        left=left,
        promised=told,
        unit_bytes=None,
        tier=np.arange(len(rows), dtype=np.int16),
        offset_key=None,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A small fleet, and all that its tasks go through."""

    fleet: Fleet
    book: PlanBook
    shards: Shards
    traffic: Traffic
    planner: JourneyPlanner
    states: ClientStates
    labour: Labour

    def driver(self, *, now_s: float = 0.0, labour: Labour | None = None) -> InProcessDriver:
        """A driver at that time, with nothing under way."""
        return InProcessDriver(
            fleet=self.fleet,
            planner=self.planner,
            shards=self.shards,
            book=self.book,
            labour=labour or self.labour,
            clock=VirtualClock(now_s=now_s),
            states=self.states,
            traffic=self.traffic,
        )


def scene(
    folder: Path,
    fleet: Fleet | None = None,
    *,
    shards: Shards = SHARDS,
    method: Method | None = None,
    ladder: bool = False,
    faults: Faults | None = None,
    timeout_s: float | None = None,
    down: Pipeline = NOTHING,
    up: Pipeline = NOTHING,
) -> Scene:
    """A scene at the shop; `ladder` says whether clients have plans."""
    fleet, method, bench = fleet or small_fleet(), method or METHODS["fedavg"](), shop().bench
    book = shop().ladder if ladder else shop().plain
    traffic = Traffic(down=down, up=up, differences=method.differences, run_seed=11)
    planner = JourneyPlanner(
        fleet=fleet,
        budgets=Budgets(fleet, resident_bytes=book.resident_bytes, eager_peak_bytes=book.eager_peak_bytes),
        shards=shards,
        book=book,
        traffic=traffic,
        faults=faults or Faults(),
        sizes=bench.sizes,
        timeout_s=timeout_s,
    )
    return Scene(
        fleet=fleet,
        book=book,
        shards=shards,
        traffic=traffic,
        planner=planner,
        states=ClientStates(folder / "states", {}),
        labour=InThisProcess(method=method, bench=bench, book=book, traffic=traffic),
    )


def small_task(client: int, **changes: Any) -> ClientTask:
    """One epoch from the first weights, by the unplanned step."""
    fields: dict[str, Any] = {
        "round_index": 0,
        "client": client,
        "weights": shop().weights,
        "work": WORK,
        "plan": None,
        "seed": 100 + client,
    }
    return ClientTask(**(fields | changes))


def same_tensors(one: Tensors, other: Tensors) -> bool:
    """Whether names, types, shapes and every bit are equal."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].contiguous().view(-1).view(torch.uint8).equal(other[name].contiguous().view(-1).view(torch.uint8))
        for name in one
    )
