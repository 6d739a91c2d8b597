"""The clients that can be chosen now, column by column, each made only when a policy asks for it."""

from __future__ import annotations

import math
from collections.abc import Set
from functools import cached_property
from typing import final

import numpy as np
from torch import Tensor

from fedhybrid.data import Shards
from fedhybrid.devices import DeviceProfile
from fedhybrid.engine.budgets import Budgets
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import steps_of
from fedhybrid.engine.traffic import Traffic
from fedhybrid.fleet import Fleet, free_clients, sample_available
from fedhybrid.records import FloatArray, IntArray, LocalWork
from fedhybrid.tree import Tensors

__all__ = ["FleetCosts", "FleetView"]


@final
class FleetCosts:
    """What is the same at every look: who holds how much, and what steps cost on each kind of device."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        shards: Shards,
        book: PlanBook,
        budgets: Budgets,
        work: LocalWork,
        traffic: Traffic,
        model: Tensors,
        labels: Tensor | None = None,
    ) -> None:
        self.fleet, self.book, self.budgets, self.shards = fleet, book, budgets, shards
        self._work, self._labels = work, labels
        self._down_bytes, self._up_bytes = traffic.expected_bytes(model)
        self._devices = [tier.device for tier in fleet.tiers]
        self._classes: tuple[int, ...] | None = None

    def show(self, classes: tuple[int, ...] | None) -> None:
        """From now on only samples of these classes count; None: all."""
        if classes != self._classes:
            self._classes = classes
            for name in ("num_samples", "steps", "without_samples"):
                self.__dict__.pop(name, None)

    @cached_property
    def num_samples(self) -> IntArray:
        """Training samples of every client that count now."""
        if self._classes is None:
            return self.shards.sizes
        shown: IntArray = self.label_counts[:, list(self._classes)].sum(axis=1)
        return shown

    @cached_property
    def without_samples(self) -> frozenset[int]:
        """Who holds nothing of the classes that are shown; nobody, where all are."""
        return frozenset() if self._classes is None else frozenset(np.flatnonzero(self.num_samples == 0).tolist())

    @cached_property
    def label_counts(self) -> IntArray:
        """Training samples of each class of every client; no column where the labels are not known here."""
        if self._labels is None:
            return np.zeros((len(self.shards), 0), dtype=np.int64)
        labels = self._labels.numpy()
        found = np.zeros((len(self.shards), int(labels.max(initial=0)) + 1), dtype=np.int64)
        for client in range(len(self.shards)):
            found[client] = np.bincount(labels[self.shards[client]], minlength=found.shape[1])
        return found

    @cached_property
    def steps(self) -> IntArray:
        """Training steps of every client's task."""
        sizes, place = np.unique(self.num_samples, return_inverse=True)
        return np.array([steps_of(self._work, int(size)) for size in sizes], dtype=np.int64)[place.reshape(-1)]

    @cached_property
    def transfer_s(self) -> FloatArray:
        """Seconds of a model down and up again, of each tier."""
        return np.array(
            [
                self._down_bytes / device.downlink_bytes_per_s + self._up_bytes / device.uplink_bytes_per_s
                for device in self._devices
            ]
        )

    @cached_property
    def kernel_s(self) -> FloatArray:
        """Summed seconds of the step's distinct operators, of each tier."""
        return np.array([self.book.kernel_s(device.name) for device in self._devices])

    @cached_property
    def still_step_s(self) -> FloatArray:
        """Seconds of a step of every client, where budgets do not change."""
        every = np.arange(len(self.fleet), dtype=np.int64)
        return self.step_s(every, self.budgets.most)

    def step_s(self, clients: IntArray, budget_bytes: IntArray) -> FloatArray:
        """Seconds of a step within these budgets, its talk with the server among them; asked once for each kind."""
        tier = np.asarray(self.fleet.tier)[clients].astype(np.int64)
        kind = self.book.kinds(budget_bytes, [device.name for device in self._devices], tier)
        _, first, kind_of = np.unique(kind, return_index=True, return_inverse=True)
        offers = [(self._devices[tier[i]], int(budget_bytes[i])) for i in first]
        seconds = np.array([self.book.step_s(device.name, budget) for device, budget in offers])
        talk_s = np.array([self._talk_s(device, budget) for device, budget in offers])
        place = kind_of.reshape(-1)
        found: FloatArray = seconds[place] * self.fleet.speed_factor(clients) + talk_s[place]
        return found

    def _talk_s(self, device: DeviceProfile, budget_bytes: int) -> float:
        """Seconds on the link in the middle of one step."""
        bytes_up, bytes_down = self.book.exchanged_bytes(device.name, budget_bytes)
        return bytes_up / device.uplink_bytes_per_s + bytes_down / device.downlink_bytes_per_s


@final
class FleetView:
    """Implements `protocols.CandidateView`: who is online at `now_s` and has no task (`busy`)."""

    def __init__(self, costs: FleetCosts, now_s: float, busy: Set[int]) -> None:
        self._costs, self._now_s, self._busy = costs, now_s, busy

    def __len__(self) -> int:
        return len(self._costs.fleet) - len(self._busy)

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """At most `count` of the clients without replacement, all alike, in ascending order."""
        return sample_available(self._costs.fleet, count, self._now_s, rng, self._busy)

    @cached_property
    def client(self) -> IntArray:
        """Client numbers, ascending."""
        return free_clients(self._costs.fleet, self._now_s, self._busy)

    @cached_property
    def tier(self) -> IntArray:
        """Index of each client's tier."""
        return np.asarray(self._costs.fleet.tier)[self.client].astype(np.int64)

    @cached_property
    def budget_bytes(self) -> IntArray:
        """What each client promises for a task that begins now."""
        budgets = self._costs.budgets
        return budgets.promised(self.client, self._now_s) if budgets.move else budgets.most[self.client]

    @cached_property
    def num_samples(self) -> IntArray:
        """Training samples that each client holds."""
        return self._costs.num_samples[self.client]

    @cached_property
    def label_counts(self) -> IntArray:
        """Training samples of each class that each client holds."""
        return self._costs.label_counts[self.client]

    @property
    def unplanned_bytes(self) -> int:
        """Peak of the step without any plan."""
        return self._costs.book.eager_peak_bytes

    @property
    def smallest_bytes(self) -> int:
        """Smallest peak that the step can be run in."""
        return self._costs.book.smallest_bytes

    @cached_property
    def step_s(self) -> FloatArray:
        """Predicted seconds of one step as each client would run it; infinity where it cannot."""
        if self._costs.budgets.move:
            return self._costs.step_s(self.client, self.budget_bytes)
        return self._costs.still_step_s[self.client]

    @cached_property
    def kernel_s(self) -> FloatArray:
        """Sum over the model's distinct operators of their seconds on each client's device."""
        return self._costs.kernel_s[self.tier]

    @cached_property
    def round_s(self) -> FloatArray:
        """Predicted seconds of each client's whole task; infinity where it cannot."""
        steps = self._costs.steps[self.client]
        seconds = np.where(steps > 0, self.step_s * np.maximum(steps, 1), math.inf)
        return seconds + self._costs.transfer_s[self.tier]
