"""The plans of one submodel: its captured step, priced for each device, planned once for each budget that occurs.

Plan costs come from the device profiles, never from this machine's clock, so the same recipe gives the same plans
everywhere. Each plan is a file of the run's folder and is read from there when the run goes on after a stop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar, final

from fedhybrid.devices import DeviceProfile
from fedhybrid.engine.files import write_atomically
from fedhybrid.engine.planfiles import INFEASIBLE, read_infeasible, read_plan
from fedhybrid.engine.plannames import OURS, SMALLEST, bucket_name, plan_name
from fedhybrid.errors import ConfigError, InfeasibleBudgetError
from fedhybrid.executor import LOSS_FREE, PlanOptions, PreparedStep
from fedhybrid.executor.tensor_times import tensor_times
from fedhybrid.graph import exchanged_bytes
from fedhybrid.planner import SOLVERS, Plan
from fedhybrid.records import IntArray, TensorTimes

__all__ = ["COARSE_BUCKETS", "FINE_BUCKETS", "Shelf", "bucket_bytes"]

B = TypeVar("B", int, IntArray)

FINE_BUCKETS = 256  # rounding down costs a budget at most 1/256 of the eager peak, and a fleet needs few plans
COARSE_BUCKETS = 16  # where each client has its own budget, or budgets move: rungs of a ladder of plans


def bucket_bytes(budget_bytes: B, *, eager_peak_bytes: int, buckets: int = FINE_BUCKETS) -> B:
    """The budget rounded down to a multiple of the power of two below 1/`buckets` of the eager peak, at least 1 KiB.

    >>> bucket_bytes(10_000_000, eager_peak_bytes=64 * 2**20)
    9961472
    """
    width = max(1024, 1 << max(0, (eager_peak_bytes // buckets).bit_length() - 1))
    return budget_bytes // width * width


@final
class Shelf:
    """Says what clients run of one submodel and what that costs; a plan is solved when it is first asked for.

    Plans are called `<device>-<bucket>`, `<device>-keep-all` (the budget holds the whole program without a decision),
    `<device>-<bucket>-auto` (what was asked for finds none, the solver "auto" does without loss) or
    `<device>-smallest` (the budget holds the smallest plan, its bucket none). With a codec for the whole model
    there is one plan a device, `<device>-<codec>`, which packs every eligible tensor whatever the budget; with a
    fallback there is one, `<device>-<fallback>`, for budgets that do not hold the unplanned step. Plans of a submodel
    that has a name end in `@<name>`.

    Attributes:
        enabled: Whether clients get plans at all; if not, everything runs the unplanned step.
        resident_bytes: Parameters, buffers, optimizer state and batch.
        eager_peak_bytes: Peak of the unplanned step in PyTorch (M_G in the paper).
        exchanged_bytes: To the server and back in the middle of one step.
    """

    def __init__(
        self,
        prepared: PreparedStep,
        devices: Mapping[str, DeviceProfile],
        folder: Path,
        *,
        submodel: str = "",
        enabled: bool,
        planning: PlanOptions,
        codec: str | None = None,
        fallback: str | None = None,
        buckets: int = FINE_BUCKETS,
        one_floor: bool = False,
    ) -> None:
        self._prepared, self._submodel = prepared, submodel
        self._priced: dict[str, PreparedStep] = {}
        self._folder, self._infeasible_file = folder / "plans", folder / INFEASIBLE
        self._folder.mkdir(exist_ok=True)
        self._planning, self._codec, self._fallback, self._buckets = planning, codec, fallback, buckets
        # Finding the smallest plan takes longer than any other: of many submodels, all devices get the same one.
        self._one_floor = one_floor
        # Lossy actions have a cap on their error: which floor keeps to it is not known beforehand.
        only_loss_free = set(planning.actions) <= set(LOSS_FREE)
        self._floor_actions = tuple(planning.actions) if only_loss_free else LOSS_FREE
        # Where what was asked for finds nothing, a cheap plan may exist all the same; the smallest is the dearest.
        floor = replace(planning, solver=OURS, actions=self._floor_actions, max_gradient_error=0.0)
        has_tried = planning.solver == OURS and set(self._floor_actions) <= set(planning.actions)
        self._stand_in = None if has_tried else floor
        self._plans: dict[str, Plan] = {}
        self._infeasible = read_infeasible(self._infeasible_file)
        self._fingerprint = prepared.fingerprint
        self._unplanned: dict[str, Plan] = {}
        self._times: dict[str, TensorTimes] = {}
        self.add_devices(devices)
        self.enabled = enabled
        self.resident_bytes, self.eager_peak_bytes = prepared.resident_bytes, prepared.eager_peak_bytes
        self._keep_all_bytes = prepared.keep_all_peak_bytes
        self.exchanged_bytes = exchanged_bytes(prepared.graph)

    def add_devices(self, devices: Mapping[str, DeviceProfile]) -> None:
        """Prices the step for more devices, by their names; a profile that is known under its name is replaced."""
        for name, device in sorted(devices.items()):
            self._priced[name] = self._prepared.priced(device.op_time_s)
            self._unplanned[name] = self._priced[name].keep_all()

    def choose(self, device: str, budget_bytes: int) -> str | None:
        """The name of the plan for this device and budget; None for the unplanned step, also where no plan fits."""
        if not self.enabled:
            return None
        if self._fallback is not None and budget_bytes >= self.needed_bytes(None):
            return None
        if self._codec is not None or self._fallback is not None:
            name, plan = self._smallest(device)
            return name if budget_bytes >= plan.peak_bytes else None
        if budget_bytes >= self._keep_all_bytes:
            return self._named(device, "keep-all", self._priced[device].keep_all)[0]
        smallest_name, smallest = self._smallest(device)
        if budget_bytes < smallest.peak_bytes:
            return None
        return self._solved(device, self.rounded(budget_bytes)) or smallest_name

    def rounded(self, budget_bytes: B) -> B:
        """The budget's bucket, in bytes; budgets of one bucket get one plan, but for the smallest and the whole."""
        return bucket_bytes(budget_bytes, eager_peak_bytes=self.eager_peak_bytes, buckets=self._buckets)

    def least_bytes(self, device: str) -> int:
        """The smallest peak that this device can run the step in."""
        if not self.enabled:
            return self.needed_bytes(None)
        least = self._smallest(device)[1].peak_bytes
        return least if self._fallback is None else min(least, self.needed_bytes(None))

    def recall(self, name: str) -> None:
        """Makes a plan known that the run has made before a stop: a shelf begins empty, its files are there.

        Raises:
            ConfigError: Its file is missing or damaged.
        """
        if name not in self._plans:
            self._plans[name] = read_plan(self._folder / f"{name}.json")

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the parameters that the step updates."""
        return self._prepared.trained

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors of the submodel."""
        layouts = self._prepared.layouts
        return (*layouts.params, *layouts.buffers)

    @property
    def names(self) -> frozenset[str]:
        """The plans that are known so far."""
        return frozenset(self._plans)

    @property
    def keep_all_bytes(self) -> int:
        """Peak of the whole program without a decision."""
        return self._keep_all_bytes

    @property
    def undecided_bytes(self) -> int:
        """The budget from which nothing is decided for the step."""
        return self._keep_all_bytes if self._fallback is None else self.needed_bytes(None)

    def needed_bytes(self, plan: str | None) -> int:
        """Memory that the plan needs; for the unplanned step what PyTorch needs without plans."""
        return max(self.eager_peak_bytes, self._keep_all_bytes) if plan is None else self._known(plan).peak_bytes

    def program(self, device: str, plan: str | None) -> Plan:
        """What runs: the plan of that name or, for None, the whole program without a decision.

        That program computes what PyTorch's eager step does, bit by bit, in no more memory.
        """
        return self._unplanned[device] if plan is None else self._known(plan)

    def step_s(self, device: str, budget_bytes: int) -> float:
        """Seconds of one step on this device within this budget; infinity where the step does not fit."""
        plan = self.choose(device, budget_bytes)
        return self.program(device, plan).step_time_s if budget_bytes >= self.needed_bytes(plan) else math.inf

    def kernel_s(self, device: str) -> float:
        """Sum over the step's distinct operators of their seconds on this device."""
        return self._priced[device].kernel_s

    def tensor_times(self, device: str) -> TensorTimes:
        """Where the seconds of the unplanned step go on this device."""
        if device not in self._times:
            self._times[device] = tensor_times(self._priced[device])
        return self._times[device]

    def _smallest(self, device: str) -> tuple[str, Plan]:
        priced, one_plan = self._priced[device], self._codec or self._fallback
        if one_plan is not None:  # a codec packs every eligible tensor
            solve = priced.solved_by if one_plan in SOLVERS else priced.packed_whole
            return self._named(device, one_plan, partial(solve, one_plan))
        if not self._one_floor:
            return self._named(device, SMALLEST, partial(self._priced[device].smallest, actions=self._floor_actions))
        return self._named(device, SMALLEST, lambda: self._priced[device].repriced(self._floor))

    @cached_property
    def _floor(self) -> Plan:
        """The plan of the smallest peak at the prices of the step as it was captured."""
        return self._prepared.smallest(actions=self._floor_actions)

    def _solved(self, device: str, rounded_bytes: int) -> str | None:
        """The name of a bucket's plan, by the solver that was asked for, else by "auto"; None if neither finds one."""
        which = bucket_name(rounded_bytes)
        found = self._tried(device, which, rounded_bytes, self._planning)
        if found is None and self._stand_in is not None:
            found = self._tried(device, f"{which}-{OURS}", rounded_bytes, self._stand_in)
        return found

    def _tried(self, device: str, which: str, rounded_bytes: int, planning: PlanOptions) -> str | None:
        name = self._name(device, which)
        if name in self._infeasible:
            return None
        try:
            return self._named(device, which, partial(self._priced[device].planned, rounded_bytes, planning))[0]
        except InfeasibleBudgetError as error:
            self._infeasible[name] = error.needed_bytes
            write_atomically(self._infeasible_file, json.dumps(self._infeasible, indent=2, sort_keys=True) + "\n")
            return None

    def _known(self, name: str) -> Plan:
        self.recall(name)  # this shelf may have been forgotten and made again
        return self._plans[name]

    def _name(self, device: str, which: str) -> str:
        return plan_name(device, which, self._submodel)

    def _named(self, device: str, which: str, solve: Callable[[], Plan]) -> tuple[str, Plan]:
        """The plan from memory, else from the run's folder, else solved and stored there."""
        name = self._name(device, which)
        if name not in self._plans:
            path = self._folder / f"{name}.json"
            if path.is_file():
                plan = read_plan(path)
                if plan.fingerprint != self._fingerprint:
                    raise ConfigError(
                        f"{path} was made for graph {plan.fingerprint}, this step's graph is {self._fingerprint}; "
                        "go on with the model's code and the torch version that the run was begun with, or start "
                        "again with another --out"
                    )
            else:
                plan = solve()
                write_atomically(path, plan.to_json())
            self._plans[name] = plan
        return name, self._plans[name]
