"""What the server can offer a device: the step of anybody's app, captured once, priced and planned for each device."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from fedhybrid.devices import DeviceProfile
from fedhybrid.engine.plans import COARSE_BUCKETS, PlanBook
from fedhybrid.executor import PlanOptions, prepare_step
from fedhybrid.planner import Plan
from fedhybrid.protocols import Optimizer
from fedhybrid.units import Budget, format_bytes

__all__ = ["Offer", "Offers"]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a device would run.

    Attributes:
        name: Of the plan; None for the unplanned step of an app that takes no plans.
        plan: None for that, too.
        peak_bytes: What it needs.
        step_s: Predicted seconds of a step.
    """

    name: str | None
    plan: Plan | None
    peak_bytes: int
    step_s: float


@final
class Offers:
    """Plans by device and budget; each is solved when it is first asked for."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Any],
        example_batch: Any,
        optimizer: Optimizer,
        *,
        device: DeviceProfile,
        planning: PlanOptions,
    ) -> None:
        """Captures the step; nothing is timed and the model stays as it is.

        Args:
            model: In the mode (train or eval) that clients train it in.
            loss_fn: As of `fh.compile_step`.
            example_batch: Its shapes are the clients'.
            optimizer: Of the clients.
            device: Stands for devices that do not say what they are.
            planning: How to plan.

        Raises:
            CaptureError: The model does not trace.
            ConfigError: Something is none of these.
        """
        self._prepared = prepare_step(model, loss_fn, example_batch, optimizer, op_seconds=device.op_time_s)
        self._planning = planning
        self._folder = Path(tempfile.mkdtemp(prefix="fedhybrid-plans-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._books: dict[str, PlanBook] = {}
        self._numbers: dict[str, int] = {}
        self.assumed = device
        self.book(device)

    def book(self, device: DeviceProfile) -> PlanBook:
        """The plans of one kind of device."""
        if device.name not in self._books:
            folder = self._folder / str(len(self._books))
            folder.mkdir()
            self._books[device.name] = PlanBook(
                self._prepared,
                {device.name: device},
                folder,
                enabled=True,
                planning=self._planning,
                buckets=COARSE_BUCKETS,  # each node has a budget of its own, and they fall
            )
            self._numbers[device.name] = len(self._numbers)
        return self._books[device.name]

    def kind(self, device: DeviceProfile) -> int:
        """A number for each kind of device."""
        self.book(device)
        return self._numbers[device.name]

    @property
    def unplanned_bytes(self) -> int:
        """Peak of the step without a plan, in plain PyTorch."""
        return self._prepared.eager_peak_bytes

    @property
    def smallest_bytes(self) -> int:
        """The smallest peak on any kind of device seen."""
        return min(book.smallest_bytes for book in self._books.values())

    def bytes_of(self, budget: Budget) -> int:
        """A budget in bytes."""
        return budget.resolve_bytes(
            resident_bytes=self._prepared.resident_bytes, eager_peak_bytes=self._prepared.eager_peak_bytes
        )

    def planned(self, device: DeviceProfile, budget_bytes: int) -> Offer | str:
        """The plan for this device and budget, or why there is none."""
        book = self.book(device)
        name = book.choose(device.name, budget_bytes)
        if name is None:
            least_bytes = book.least_bytes(device.name)
            return (
                f"the smallest plan needs {format_bytes(least_bytes)}, the budget is {format_bytes(budget_bytes)}; "
                "use a smaller batch or a larger budget"
            )
        plan = book.program(device.name, name)
        return Offer(name=name, plan=plan, peak_bytes=plan.peak_bytes, step_s=plan.step_time_s)

    def unplanned(self, budget_bytes: int) -> Offer | str:
        """The step as an app runs it that takes no plans, or why it does not fit."""
        if budget_bytes < self.unplanned_bytes:
            return (
                f"its app takes no plans, the step needs {format_bytes(self.unplanned_bytes)} without one, and it has "
                f"failed; {format_bytes(budget_bytes)} are trusted to be there. Add @app.query('fedhybrid') to the app"
            )
        step_s = self.book(self.assumed).step_s(self.assumed.name, max(budget_bytes, self._keep_all_bytes))
        return Offer(name=None, plan=None, peak_bytes=self.unplanned_bytes, step_s=step_s)

    @property
    def _keep_all_bytes(self) -> int:
        return self.book(self.assumed).keep_all_bytes

    def least_bytes(self, device: DeviceProfile, *, planned: bool) -> int:
        """The smallest peak that there is for a device."""
        return self.book(device).least_bytes(device.name) if planned else self.unplanned_bytes

    def kernel_s(self, device: DeviceProfile) -> float:
        """Summed seconds of the step's distinct operators."""
        return self.book(device).kernel_s(device.name)
