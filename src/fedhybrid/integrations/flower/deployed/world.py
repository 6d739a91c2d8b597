"""What the loop works with in a deployment: the nodes that are there now stand for the fleet."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from flwr.serverapp import Grid

from fedhybrid.devices import DeviceProfile
from fedhybrid.engine import Assemble, Federation, RunFolder, World
from fedhybrid.engine.candidates import FleetCosts, FleetView
from fedhybrid.engine.checkpoint import Checkpoint
from fedhybrid.engine.evaluate import EvaluationSizes, Evaluator
from fedhybrid.engine.plans import COARSE_BUCKETS
from fedhybrid.engine.states import ClientStates
from fedhybrid.engine.traffic import Traffic
from fedhybrid.engine.world import book_of, costs_of, submodels_of, traffic_of
from fedhybrid.errors import ConfigError
from fedhybrid.fleet import Delays, Fleet, Tier
from fedhybrid.integrations.flower.brief import brief_of_run
from fedhybrid.integrations.flower.deployed.driver import DeployedDriver
from fedhybrid.integrations.flower.deployed.nodes import Roll
from fedhybrid.integrations.flower.deployed.open_tasks import Patience
from fedhybrid.integrations.flower.versions import library_versions
from fedhybrid.records import IntArray
from fedhybrid.units import format_bytes, parse_budget

__all__ = ["DeployedWorld", "deployed"]

_LOOK_AGAIN_S = 1.0
_SAY_AGAIN_S = 60.0
_NOBODY_BYTES = 1  # the budget of a client whose node is not there; it is never chosen


@dataclass(kw_only=True, eq=False)
class _Snapshot:
    """The fleet as it was after so many changes of the roll."""

    changes: int
    fleet: Fleet
    costs: FleetCosts


@final
class _Sizes:
    """How much each node holds, as `data.Shards` says it; nobody's sample numbers are known here."""

    def __init__(self, sizes: IntArray) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, client: int) -> IntArray:
        return np.zeros(0, dtype=np.int64)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DeployedWorld(World):
    """A world of registered nodes; each is a tier of its own in records and reports."""

    driver: DeployedDriver
    roll: Roll
    traffic: Traffic
    on_news: Callable[[str], None]
    seen: list[_Snapshot] = field(default_factory=list)
    told_s: list[float] = field(default_factory=list)
    unable: set[str] = field(default_factory=set)

    @property
    def fleet(self) -> Fleet:
        """The nodes, those that have gone among them."""
        return self._now().fleet

    def candidates(self) -> FleetView:
        """Those whose nodes have joined and have nothing to do."""
        free = {c for c in self.driver.clients().tolist() if self._can(c)} - self.driver.unavailable
        now = self._now()
        return FleetView(now.costs, self.driver.now(), frozenset(range(len(now.fleet))) - free)

    def _can(self, client: int) -> bool:
        """Whether the step fits the node at all; if not, its task would end at once, and that is said only once."""
        node = self.roll.ready[client]
        needed_bytes, (promised_bytes,) = self.book.least_bytes(node.device.name), self.promised([client])
        able = bool(node.num_samples) and promised_bytes >= needed_bytes
        if able:
            self.unable.discard(node.name)
        elif node.name not in self.unable:
            self.unable.add(node.name)
            why = f"promises {format_bytes(promised_bytes)}, a step needs {format_bytes(needed_bytes)} at least"
            self.on_news(f"{node.name} cannot take part: {why if node.num_samples else 'it holds no samples'}")
        return able

    def promised(self, clients: Sequence[int]) -> list[int]:
        """What these clients' nodes promise now, less what is not believed."""
        ready = self.roll.ready
        return [
            ready[c].budget_bytes(resident_bytes=self.book.resident_bytes, eager_peak_bytes=self.book.eager_peak_bytes)
            if c in ready
            else _NOBODY_BYTES
            for c in clients
        ]

    def tier(self, client: int) -> Tier:
        """The client's node, or what is known of it where it has gone."""
        return self._now().fleet.tier_of(client)

    def devices(self) -> Sequence[DeviceProfile]:
        """Those of the nodes that are there."""
        return [node.device for node in self.roll.ready.values()] or super().devices()

    def speed_factor(self, client: int) -> float:
        """A node's profile is its own."""
        return 1.0

    def num_samples(self, client: int) -> int:
        """Training samples that its node holds."""
        node = self.roll.by_client.get(client)
        return 0 if node is None or node.num_samples is None else node.num_samples

    def next_arrival_s(self) -> float | None:
        """Somebody may come at any time."""
        return _LOOK_AGAIN_S

    def wait_for_somebody(self) -> bool:
        """Waits a moment for nodes, and says why nobody was chosen of those who are there."""
        now_s = self.driver.now()
        if self.told_s and now_s - self.told_s[-1] < _SAY_AGAIN_S:
            return super().wait_for_somebody()
        self.told_s[:] = [now_s]
        promised = self.promised(sorted(self.roll.ready))
        if promised:
            needed, most = format_bytes(self.book.smallest_bytes), format_bytes(max(promised))
            self.on_news(
                f"no node was chosen of {len(promised)}: a step needs {needed} at least, they promise {most} at most; "
                "waiting"
            )
        else:
            self.on_news("no node is there; waiting")
        return super().wait_for_somebody()

    def wait_for(self, nodes: int, *, within_s: float) -> None:
        """Waits until so many nodes have joined.

        Raises:
            ConfigError: They have not in that time; it says who has, and who was refused why.
        """
        end_s = self.driver.now() + within_s
        while len(self.driver.clients()) < nodes:
            if self.driver.now() >= end_s:
                there = ", ".join(sorted(node.name for node in self.roll.ready.values())) or "nobody"
                refused = "".join(f"; refused: {why}" for why in self.roll.refused.values())
                raise ConfigError(f"{nodes} nodes were to join within {within_s:g} s, there is {there}{refused}")
            self.driver.advance_to(self.driver.now() + 0.1)

    def _now(self) -> _Snapshot:
        if not self.seen or self.seen[-1].changes != self.roll.changes:
            self.seen[:] = [self._snapshot()]
        return self.seen[-1]

    def _snapshot(self) -> _Snapshot:
        job, clients = self.job, len(self.job.shards)
        nobody = next(iter(job.fleet.tiers)).device
        known = self.roll.last_known
        devices: list[DeviceProfile] = [known[c].device if c in known else nobody for c in range(clients)]
        tiers = tuple(
            Tier(
                name=self.roll.name_of(c),
                budget=parse_budget(max(budget_bytes, _NOBODY_BYTES)),
                device=devices[c],
                clients=1,
            )
            for c, budget_bytes in enumerate(self.promised(range(clients)))
        )
        fleet = Fleet(tier=np.arange(clients, dtype=np.int16), tiers=tiers)
        sizes = _Sizes(np.array([self.num_samples(c) for c in range(clients)], dtype=np.int64))
        costs = costs_of(job, self.book, self.traffic, fleet=fleet, shards=sizes)
        return _Snapshot(changes=self.roll.changes, fleet=fleet, costs=costs)


def deployed(
    grid: Grid,
    *,
    nodes: int,
    within_s: float = 600.0,
    patience: Patience | None = None,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
    on_news: Callable[[str], None] = lambda news: None,
    name_of_key: Callable[[int], str | None] = lambda node_id: None,
) -> Assemble:
    """For `fh.run`'s `assemble`: the clients are whoever registers over the grid, in real time.

    Args:
        grid: Carries the messages.
        nodes: So many must have joined before the first round.
        within_s: In this time.
        patience: How long is waited for whom.
        clock: Seconds of any origin.
        wait: Lets so many seconds pass.
        on_news: Hears of nodes that come, go and are refused.
        name_of_key: The name of the key that a node has shown; None where nobody knows.
    """

    def assemble(job: Federation, folder: RunFolder, state: Checkpoint) -> World:
        if job.stream is not None:
            raise ConfigError("a [stream] needs clients whose classes the server knows; take it out of a deployment")
        if job.faults or job.fleet.memory is not None or job.fleet.delays != Delays():
            raise ConfigError(
                "failures, fleet.memory and fleet.delays simulate what real devices do by themselves; take these "
                "tables out of the recipe of a deployment"
            )
        if job.method.preparations and nodes < len(job.shards):
            on_news("preparations are done by the nodes that are there at the beginning; others come too late for them")
        book, traffic = book_of(job, folder, submodels_of(job), COARSE_BUCKETS), traffic_of(job)
        states = ClientStates(folder.path / "states", state.client_states)
        roll = Roll(folder.path / "nodes.json", len(job.shards), library_versions(), name_of_key=name_of_key)
        driver = DeployedDriver(
            grid,
            roll,
            brief=brief_of_run(folder.path),
            attend=job.attend,
            book=book,
            traffic=traffic,
            states=states,
            sizes=EvaluationSizes(Evaluator(job.model, job.dataset.train)),
            boot=secrets.randbits(31),
            began_s=state.now_s,
            clock=clock,
            wait=wait,
            patience=patience or Patience(task_s=job.schedule.timeout_s or Patience.task_s),
            on_news=on_news,
        )
        costs = costs_of(job, book, traffic)
        world = DeployedWorld(
            job=job,
            driver=driver,
            book=book,
            budgets=costs.budgets,
            costs=costs,
            evaluator=Evaluator(job.model, job.dataset.test),
            states=states,
            clock="real",
            tasks={each.ticket: each.task for each in state.pending},
            roll=roll,
            traffic=traffic,
            on_news=on_news,
        )
        world.wait_for(nodes, within_s=within_s)
        driver.start_clock(state.now_s)
        driver.restore(state.pending, state.next_ticket)
        return world

    return assemble
