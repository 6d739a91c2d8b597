"""The run's plan book: what each client runs of which submodel, and what that costs.

Submodels are captured when they are first asked for, and those that have not been asked for longest are forgotten
again: a method may name as many as it likes. Their plans stay as files of the run's folder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np

from fedhybrid.devices import DeviceProfile
from fedhybrid.engine.plannames import submodel_of
from fedhybrid.engine.shelf import COARSE_BUCKETS, FINE_BUCKETS, Shelf, bucket_bytes
from fedhybrid.executor import PlanOptions, PreparedStep
from fedhybrid.planner import Plan
from fedhybrid.records import IntArray, TensorTimes

__all__ = ["COARSE_BUCKETS", "FINE_BUCKETS", "PlanBook", "bucket_bytes"]

_SHELVES = 64  # captured steps that are remembered at once, beside those of the menu


@final
class PlanBook:
    """The shelves of a run's submodels, and which of them a client is offered.

    Attributes:
        enabled: Whether clients get plans at all; if not, everything runs the unplanned step.
        menu: Submodels that clients are offered, the preferred first.
    """

    def __init__(
        self,
        prepared: PreparedStep,
        devices: Mapping[str, DeviceProfile],
        folder: Path,
        *,
        enabled: bool,
        planning: PlanOptions,
        codec: str | None = None,
        fallback: str | None = None,
        buckets: int = FINE_BUCKETS,
        menu: Sequence[str] = ("",),
        prepare: Callable[[str], PreparedStep] | None = None,
    ) -> None:
        """Captures and plans what everybody is offered, where all are offered the same.

        Args:
            prepared: The step that per cent budgets refer to; without `prepare` the only one.
            devices: Profiles by their names.
            folder: The run's.
            enabled: See the class.
            planning: How plans are made.
            codec: Packs every eligible tensor of every client's step instead, or None.
            fallback: Plans, for those alone who cannot hold the step as it is: a codec or a solver; see `Shelf`.
            buckets: Into how many steps of size budgets are rounded.
            menu: See the class.
            prepare: Captures a submodel's step.
        """
        self.enabled, self.menu = enabled, tuple(menu)
        self._reference, self._devices, self._folder = prepared, dict(devices), folder
        self._planning, self._codec, self._fallback, self._buckets = planning, codec, fallback, buckets
        self._prepare = prepare or (lambda submodel: prepared)
        self._shelves: OrderedDict[str, Shelf] = OrderedDict()
        self._learnt: dict[str, Plan] = {}
        if enabled and len(self.menu) == 1:  # of many submodels, the smallest plans of most are never asked for
            self.shelf(self.menu[0])
            _ = self.smallest_bytes

    @property
    def resident_bytes(self) -> int:
        """Parameters, buffers, optimizer state and batch of the plain step."""
        return self._reference.resident_bytes

    @property
    def eager_peak_bytes(self) -> int:
        """Peak of the plain step in PyTorch (M_G in FedHybrid's paper)."""
        return self._reference.eager_peak_bytes

    @cached_property
    def smallest_bytes(self) -> int:
        """The smallest peak that a client can run any submodel of the menu in (M_min in FedHybrid's paper)."""
        return min(self.least_bytes(device) for device in self._devices)

    def shelf(self, submodel: str = "") -> Shelf:
        """The plans of one submodel."""
        if submodel not in self._shelves:
            self._shelves[submodel] = Shelf(
                self._prepare(submodel),
                self._devices,
                self._folder,
                submodel=submodel,
                enabled=self.enabled,
                planning=self._planning,
                codec=self._codec,
                fallback=self._fallback,
                buckets=self._buckets,
                one_floor=len(self.menu) > 1,
            )
            forgotten = [name for name in self._shelves if name not in self.menu][:-_SHELVES]
            for name in forgotten:
                del self._shelves[name]
        self._shelves.move_to_end(submodel)
        return self._shelves[submodel]

    def add_devices(self, devices: Mapping[str, DeviceProfile]) -> None:
        """Prices the steps for more devices, by their names; a profile that is known under its name is replaced."""
        self._devices |= devices
        for shelf in self._shelves.values():
            shelf.add_devices(devices)
        self.__dict__.pop("smallest_bytes", None)

    def offer(self, device: str, budget_bytes: int) -> tuple[str, str | None]:
        """The first submodel of the menu that fits this budget, and its plan; where none does, the last one's."""
        for submodel in self.menu:
            shelf = self.shelf(submodel)
            plan = shelf.choose(device, budget_bytes)
            if budget_bytes >= shelf.needed_bytes(plan):
                break
        return submodel, plan

    def least_bytes(self, device: str) -> int:
        """The smallest peak that this device can run a submodel of the menu in."""
        return min(self.shelf(submodel).least_bytes(device) for submodel in self.menu)

    def step_s(self, device: str, budget_bytes: int) -> float:
        """Seconds of one step of what this device is offered; infinity where nothing fits."""
        return self.shelf(self.offer(device, budget_bytes)[0]).step_s(device, budget_bytes)

    def exchanged_bytes(self, device: str, budget_bytes: int) -> tuple[int, int]:
        """To the server and back in the middle of one step of what this device is offered."""
        return self.shelf(self.offer(device, budget_bytes)[0]).exchanged_bytes

    def kinds(self, budget_bytes: IntArray, devices: Sequence[str], device: IntArray) -> IntArray:
        """A number for each budget and device, both (n,); where it is equal, the same is offered at the same price.

        Args:
            budget_bytes: One each.
            devices: Names.
            device: Which of them, one each.
        """
        kind, open_rows = np.zeros(len(budget_bytes), dtype=np.int64), np.arange(len(budget_bytes))
        for number, submodel in enumerate(self.menu):
            shelf, own = self.shelf(submodel), budget_bytes[open_rows]
            fits = own >= np.array([shelf.least_bytes(name) for name in devices])[device[open_rows]]
            # All that a shelf looks at: the bucket, and whether the smallest plan or even the whole program fits.
            level = fits.astype(np.int64) + (own >= shelf.undecided_bytes)
            kind[open_rows] = (shelf.rounded(own) * 3 + level) * len(self.menu) + number
            open_rows = open_rows[~fits]
            if not len(open_rows):  # submodels that nobody needs are not even captured
                break
        return kind * len(devices) + device

    def choose(self, device: str, budget_bytes: int, submodel: str = "") -> str | None:
        """The name of a submodel's plan for this device and budget; None for the unplanned step, or where none fits."""
        return self.shelf(submodel).choose(device, budget_bytes)

    @property
    def keep_all_bytes(self) -> int:
        """Peak of the whole model's program without a decision."""
        return self.shelf().keep_all_bytes

    def needed_bytes(self, plan: str | None, submodel: str = "") -> int:
        """Memory that the plan needs; for a submodel's unplanned step what PyTorch needs without plans."""
        return self._shelf_of(plan, submodel).needed_bytes(plan)

    def program(self, device: str, plan: str | None, submodel: str = "") -> Plan:
        """What runs: the plan of that name or, for None, the submodel's whole program without a decision.

        That program computes what PyTorch's eager step does, bit by bit, in no more memory.
        """
        if plan is not None and plan in self._learnt:
            return self._learnt[plan]
        return self._shelf_of(plan, submodel).program(device, plan)

    def kernel_s(self, device: str) -> float:
        """Sum over the distinct operators of the whole model's step of their seconds on this device."""
        return self.shelf().kernel_s(device)

    def tensor_times(self, device: str, submodel: str = "") -> TensorTimes:
        """Where the seconds of a submodel's unplanned step go on this device."""
        return self.shelf(submodel).tensor_times(device)

    def recall(self, name: str) -> None:
        """Makes a plan known that the run has made before a stop: a plan book begins empty, its files are there.

        Raises:
            ConfigError: Its file is missing or damaged.
        """
        self.shelf(submodel_of(name)).recall(name)

    @property
    def names(self) -> frozenset[str]:
        """The plans that are known so far."""
        return frozenset(self._learnt).union(*(shelf.names for shelf in self._shelves.values()))

    def learn(self, name: str, plan: Plan) -> None:
        """Takes over a plan that another process has made; it is not stored."""
        self._learnt[name] = plan

    def _shelf_of(self, plan: str | None, submodel: str) -> Shelf:
        return self.shelf(submodel if plan is None else submodel_of(plan))
