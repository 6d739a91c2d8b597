"""Everything that a run needs at work: the captured step, the plan book, the simulated fleet, the test set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from fedhybrid.data import Shards
from fedhybrid.devices import DeviceProfile
from fedhybrid.engine.budgets import Budgets
from fedhybrid.engine.candidates import FleetCosts, FleetView
from fedhybrid.engine.checkpoint import Checkpoint
from fedhybrid.engine.crew import Crew
from fedhybrid.engine.driver import InProcessDriver, PendingTask
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.engine.federation import Federation
from fedhybrid.engine.folder import RunFolder
from fedhybrid.engine.journey import JourneyPlanner
from fedhybrid.engine.labour import InThisProcess, Labour
from fedhybrid.engine.plans import COARSE_BUCKETS, FINE_BUCKETS, PlanBook
from fedhybrid.engine.runtime import Workbench
from fedhybrid.engine.scoring import Tested, tested
from fedhybrid.engine.states import ClientStates
from fedhybrid.engine.submodels import Submodels, captured_step
from fedhybrid.engine.traffic import Traffic
from fedhybrid.fleet import Fleet, Tier, VirtualClock
from fedhybrid.opwork import OpWork
from fedhybrid.protocols import Driver, ServerState
from fedhybrid.records import ClientTask, StreamTask
from fedhybrid.tree import buffers_of, tensors_of

__all__ = [
    "Assemble",
    "MakeLabour",
    "RunDriver",
    "World",
    "assemble",
    "book_of",
    "costs_of",
    "submodels_of",
    "traffic_of",
]

_LOOK_AGAIN_S = 1.0  # for clients that have come online: in a large fleet somebody does at every moment


class RunDriver(Driver, Protocol):
    """A driver with what a run needs beside the protocol: to be stopped and to go on."""

    @property
    def busy(self) -> frozenset[int]:
        """Clients that have a task."""
        ...

    @property
    def next_ticket(self) -> int:
        """The number of the next submission."""
        ...

    def pending(self) -> list[PendingTask]:
        """All tasks that have not ended, in order of submission."""
        ...

    def advance_to(self, at_s: float) -> None:
        """Lets time pass while no task is under way."""
        ...

    def close(self) -> None:
        """The end of the run."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What the schedules work with. `tasks` are those under way, by their tickets; `clock` is "virtual" or "real"."""

    job: Federation
    driver: RunDriver
    book: PlanBook
    budgets: Budgets
    costs: FleetCosts
    evaluator: Evaluator
    states: ClientStates
    clock: str = "virtual"
    tasks: dict[int, ClientTask] = field(default_factory=dict)

    @property
    def fleet(self) -> Fleet:
        """All clients' devices."""
        return self.job.fleet

    def candidates(self) -> FleetView:
        """Who can be chosen now."""
        return FleetView(self.costs, self.driver.now(), self.driver.busy | self.costs.without_samples)

    def promised(self, clients: Sequence[int]) -> list[int]:
        """What these clients promise now, in bytes."""
        promised: list[int] = self.budgets.promised(np.array(clients, dtype=np.int64), self.driver.now()).tolist()
        return promised

    def tier(self, client: int) -> Tier:
        """The client's tier."""
        return self.job.fleet.tier_of(client)

    def device(self, client: int) -> DeviceProfile:
        """The client's profile."""
        return self.tier(client).device

    def devices(self) -> Sequence[DeviceProfile]:
        """Each kind of device that there is."""
        return [tier.device for tier in self.fleet.tiers]

    def speed_factor(self, client: int) -> float:
        """Seconds on the client's very device, to those of its profile."""
        return self.budgets.speed_factor(client)

    def num_samples(self, client: int) -> int:
        """Training samples that the client holds."""
        return int(self.costs.num_samples[client])

    def next_arrival_s(self) -> float | None:
        """Seconds until somebody may do who does not now: back online, or, in the next window, with more memory.

        None where nobody is ever away and budgets do not change.
        """
        now_s, memory = self.driver.now(), self.job.fleet.memory
        after_s = max(self.job.fleet.next_change_s(now_s) - now_s, _LOOK_AGAIN_S)
        if memory is not None:
            after_s = min(after_s, memory.next_window_s(now_s) - now_s)
        return None if after_s == math.inf else after_s

    def wait_for_somebody(self) -> bool:
        """Lets time pass by `next_arrival_s`, while nothing is under way; False where waiting changes nothing."""
        after_s = self.next_arrival_s()
        if after_s is not None:
            self.driver.advance_to(self.driver.now() + after_s)
        return after_s is not None

    def stream(self, round_index: int) -> StreamTask | None:
        """Which classes are on in this round, where they come one task after the other."""
        return None if self.job.stream is None else self.job.stream.at(round_index)

    def begin(self, round_index: int) -> None:
        """From now on it is this round: clients hold what they have of its classes."""
        now = self.stream(round_index)
        self.costs.show(None if now is None else now.classes)

    def is_tested(self, round_index: int) -> bool:
        """Whether the global model is tested after this round; at the end of a stream's task it always is."""
        every, now = self.job.evaluation.every, self.stream(round_index)
        last = round_index + 1 == self.job.rounds or (now is not None and now.ends)
        return last or (round_index + 1) % every == 0

    def score(self, server: ServerState, round_index: int) -> Tested:
        """How good the model is; no figures where this round is not tested."""
        if not self.is_tested(round_index):
            now = self.stream(round_index)
            return Tested(task=None if now is None else now.index)
        return tested(self.job, self.evaluator, self.states, server, self.stream(round_index))


def submodels_of(job: Federation) -> Submodels:
    """The captured steps of a run."""
    return Submodels(job.method, job.whole, *_example_and_prices(job))


def _example_and_prices(job: Federation) -> tuple[Any, Callable[[OpWork], float]]:
    split = job.dataset.train
    return split.batch(torch.arange(job.work.batch_size) % len(split)), job.fleet.tiers[0].device.op_time_s


def book_of(job: Federation, folder: RunFolder, submodels: Submodels, buckets: int) -> PlanBook:
    """The plans of a run, for the devices of its recipe's tiers."""
    plain = submodels.prepared("") if job.plain is None else captured_step(job.plain, *_example_and_prices(job))
    return PlanBook(
        plain,
        {tier.device.name: tier.device for tier in job.fleet.tiers},
        folder.path,
        enabled=job.plans,
        codec=job.codec,
        fallback=job.fallback,
        planning=job.planning,
        buckets=buckets,
        menu=job.method.menu(job.model),
        prepare=submodels.prepared,
    )


def traffic_of(job: Federation) -> Traffic:
    """What goes over the links of a run."""
    return Traffic(
        down=job.down,
        up=job.up,
        differences=job.method.differences,
        buffers=buffers_of(job.model),
        run_seed=job.seed,
        transport=job.method.transport,
    )


def costs_of(
    job: Federation, book: PlanBook, traffic: Traffic, *, fleet: Fleet | None = None, shards: Shards | None = None
) -> FleetCosts:
    """What policies look at, and the budgets; of the recipe's fleet and deal, or of others."""
    fleet = job.fleet if fleet is None else fleet
    return FleetCosts(
        fleet,
        shards=job.shards if shards is None else shards,
        book=book,
        budgets=Budgets(fleet, resident_bytes=book.resident_bytes, eager_peak_bytes=book.eager_peak_bytes),
        work=job.work,
        traffic=traffic,
        model=tensors_of(job.model),
        labels=job.dataset.train.labels if shards is None else None,
    )


Assemble = Callable[[Federation, RunFolder, Checkpoint], World]
MakeLabour = Callable[[Federation, RunFolder, PlanBook, Traffic], Labour]


def assemble(job: Federation, folder: RunFolder, state: Checkpoint, *, labour: MakeLabour | None = None) -> World:
    """Captures the step, plans for every device of the fleet, and puts back what was under way.

    Args:
        job: What to run.
        folder: Of the run.
        state: To go on from.
        labour: Makes those who do the training, where it is not done here; the virtual clock stays here all the same.
    """
    submodels = submodels_of(job)
    coarse = job.fleet.drawn is not None or job.fleet.memory is not None
    book = book_of(job, folder, submodels, COARSE_BUCKETS if coarse else FINE_BUCKETS)
    bench = Workbench(model=job.model, split=job.dataset.train, station=submodels.station)
    traffic = traffic_of(job)
    costs = costs_of(job, book, traffic)
    budgets = costs.budgets
    states = ClientStates(folder.path / "states", state.client_states)
    hands: Labour = InThisProcess(method=job.method, bench=bench, book=book, traffic=traffic, attend=job.attend)
    if labour is not None:
        hands = labour(job, folder, book, traffic)
    elif job.workers > 1:
        hands = Crew(job.workers, method=job.method, bench=bench, book=book, traffic=traffic, attend=job.attend)
    planner = JourneyPlanner(
        fleet=job.fleet,
        budgets=budgets,
        shards=job.shards,
        book=book,
        traffic=traffic,
        faults=job.faults,
        sizes=bench.sizes,
        timeout_s=job.schedule.timeout_s,
        labels=job.dataset.train.labels,
    )
    driver = InProcessDriver(
        fleet=job.fleet,
        planner=planner,
        shards=job.shards,
        book=book,
        labour=hands,
        clock=VirtualClock(now_s=state.now_s),
        states=states,
        traffic=traffic,
    )
    driver.restore(state.pending, state.next_ticket)
    return World(
        job=job,
        driver=driver,
        book=book,
        budgets=budgets,
        costs=costs,
        evaluator=Evaluator(job.model, job.dataset.test),
        states=states,
        tasks={each.ticket: each.task for each in state.pending},
    )
