"""A small fleet with everything that a task goes through, for tests of drivers and of who does the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from fedhybrid.data import Shards
from fedhybrid.engine.budgets import Budgets
from fedhybrid.engine.driver import InProcessDriver
from fedhybrid.engine.faults import Faults
from fedhybrid.engine.journey import JourneyPlanner
from fedhybrid.engine.labour import InThisProcess, Labour
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.states import ClientStates
from fedhybrid.engine.traffic import Traffic
from fedhybrid.fleet import AlwaysOnline, Availability, Fleet, FleetMemory, Tier, VirtualClock
from fedhybrid.methods import METHODS
from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.methods.local import train_locally
from fedhybrid.protocols import ClientRuntime, Method, Optimizer
from fedhybrid.records import ClientTask, Failure, TaskEvent, Update
from fedhybrid.tree import Tensors
from fedhybrid.units import parse_budget
from fedhybrid.updates import Pipeline
from tests.federation_parts import DEVICES, SHARDS, WORK, attend_of, shop
from tests.update_parts import bits_of

NOTHING = Pipeline(parts=())


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
        window_s=60.0,
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
        labour=InThisProcess(method=method, bench=bench, book=book, traffic=traffic, attend=attend_of(method)),
    )


@final
@dataclass(frozen=True, kw_only=True)
class Keeping(AbstractAveraging):
    """FedAvg whose clients count their tasks, and send only where they have changed much, with a figure of their own.

    What it adds is what no method of the package has yet: state, masks, partial updates, metrics.
    """

    @property
    def plans(self) -> bool:
        """No plans."""
        return False

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured one."""
        return base

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local epochs; all tensors but the first are sent, and of the second only its larger changes."""
        update = train_locally(task, client)
        count = client.state.get("count", torch.tensor(0)) + 1
        masked, *rest = sorted(update.weights)[1:]
        change = (update.weights[masked] - task.weights[masked]).abs()
        return replace(
            update,
            weights={name: update.weights[name] for name in (masked, *rest)},
            masks={masked: change >= change.median()},
            metrics={"change": float(change.sum())},
            state={**client.state, "count": count, "change": change},
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


def update_of(weights: Tensors, masks: Tensors | None = None, **changes: Any) -> Update:
    """A client's update with these tensors."""
    made = Update(
        client=0,
        round_index=0,
        weights=weights,
        masks=masks or {},
        num_samples=1,
        samples_seen=1,
        steps=1,
        loss_mean=1.0,
        squared_loss_sum=1.0,
        measured_peak_bytes=1,
    )
    return replace(made, **changes)


def same_tensors(one: Tensors, other: Tensors) -> bool:
    """Whether names, types, shapes and every bit are equal."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].contiguous().view(-1).view(torch.uint8).equal(other[name].contiguous().view(-1).view(torch.uint8))
        for name in one
    )


def told(event: TaskEvent | None) -> Any:
    """All of an event as values that can be compared, every bit of its tensors."""
    assert event is not None
    return event.ticket, event.at_s, event.duration_s, plain(event.result), event.cost, event.planned_peak_bytes


def plain(result: Update | Failure | None) -> Any:
    """All of a result as values that can be compared."""
    if result is None:
        return None
    fields = {name: value for name, value in vars(result).items() if name not in ("weights", "masks", "state", "ran")}
    if isinstance(result, Failure):
        return fields, plain(result.ran)
    return fields, *(bits_of(tensors or {}) for tensors in (result.weights, result.masks, result.state))
