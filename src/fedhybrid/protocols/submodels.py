"""What part of a model a client trains, and what that would cost it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fedhybrid.protocols.optimizing import Optimizer
from fedhybrid.records import LocalWork, TensorTimes

__all__ = ["Costs", "Quote", "Submodel"]


@dataclass(frozen=True, kw_only=True)
class Submodel:
    """One training step that a method has its clients run; the engine captures it, plans it, prices it and measures it.

    Attributes:
        module: In training mode. Parameters with `requires_grad=False` are frozen: they get no gradient and have no
            optimizer state, and what only they would need is neither computed nor kept. Where all are, the step is a
            forward pass and its loss. Its values mean nothing: a task's weights are loaded first.
        loss_fn: `(output, y) -> (scalar, aux)`; `aux` is what `ClientRuntime.step` returns beside the loss: the loss of
            each sample, unless the method reads it otherwise.
        optimizer: Updates the parameters that are not frozen.
    """

    module: nn.Module
    loss_fn: Callable[..., Any]
    optimizer: Optimizer

    @property
    def forward_only(self) -> bool:
        """Whether nothing is trained: no gradient, no optimizer state."""
        return not any(parameter.requires_grad for parameter in self.module.parameters())


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A submodel's training step on one client now.

    Attributes:
        plan: Name of the plan for its budget; None is the unplanned step.
        peak_bytes: What it needs, resident bytes included; where nothing fits, the least that would.
        step_s: Virtual seconds of one step; infinity where nothing fits.
    """

    plan: str | None
    peak_bytes: int
    step_s: float

    @property
    def fits(self) -> bool:
        """Whether the client can run it within its budget."""
        return math.isfinite(self.step_s)


class Costs(Protocol):
    """What a method may ask about clients before it gives out tasks. Submodels go by their names."""

    @property
    def whole(self) -> Submodel:
        """The run's own step, as `Method.submodel` is given it."""
        ...

    @property
    def example(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a batch, of which only shapes and types mean anything."""
        ...

    def quote(self, client: int, submodel: str = "") -> Quote:
        """A submodel's step on this client, within what it promises now."""
        ...

    def budget_bytes(self, client: int) -> int:
        """What the client promises now."""
        ...

    def num_samples(self, client: int) -> int:
        """Training samples that the client holds."""
        ...

    def steps(self, client: int, work: LocalWork) -> int:
        """Training steps of so much work on this client."""
        ...

    def link_s(self, client: int, *, bytes_up: int = 0, bytes_down: int = 0) -> float:
        """Seconds that so many bytes take on the client's link."""
        ...

    @property
    def deadline_s(self) -> float | None:
        """Seconds from a round's beginning after which nobody is waited for (`[schedule]`); None: everybody is."""
        ...

    def arrival_probability(
        self, client: int, *, steps: int, within_s: float, bytes_up: int, bytes_down: int = 0, submodel: str = ""
    ) -> float:
        """Probability that the client is back in time from a task that begins now; see `[fleet.delays]`.

        Args:
            client: Who would do it.
            steps: Training steps, by the plan that the client's present promise takes; while memory moves, they may
                take longer.
            within_s: Seconds from the task's beginning.
            bytes_up: Of the upload.
            bytes_down: Of the download.
            submodel: Whose step.
        """
        ...

    def step_seconds(self, submodel: str = "") -> tuple[float, ...]:
        """Seconds of the unplanned step on each kind of device of the fleet, whether or not it fits there."""
        ...

    def tensor_times(self, client: int, submodel: str = "") -> TensorTimes:
        """Where the seconds of a submodel's step go on this client's device, parameter by parameter."""
        ...
