"""The seam between a step and the ways of running it: a captured program, or eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from fedhybrid.codecs import BoundCodec
from fedhybrid.executor.bound import BoundModel, Layouts
from fedhybrid.protocols import Optimizer

if TYPE_CHECKING:
    from fedhybrid.executor.options import PlanOptions
    from fedhybrid.planner import Plan
    from fedhybrid.units import Budget

__all__ = ["Apply", "Preparation", "Runner"]

# Takes a parameter's name, its final gradient, and whether the gradient's memory may be overwritten.
Apply = Callable[[str, Tensor, bool], None]


class Runner(Protocol):
    """One way of running a step, made for one plan."""

    @property
    def source(self) -> str:
        """What runs, as text."""
        ...

    @property
    def codecs(self) -> Sequence[BoundCodec]:
        """Those of the tensors that wait packed."""
        ...

    def run(self, bound: BoundModel, batch: Any, apply: Apply) -> tuple[Tensor, Tensor | None]:
        """Forward and backward pass of a batch; returns the detached loss and the auxiliary output.

        `apply` is called once for each parameter with its final gradient, as early as the way of running allows.
        """
        ...


class Preparation(Protocol):
    """What a step is made of, and the plans and runners that can be made for it."""

    @property
    def model(self) -> nn.Module:
        """Trained in place."""
        ...

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """As the user gave it."""
        ...

    @property
    def optimizer(self) -> Optimizer:
        """The rule of the updates."""
        ...

    @property
    def example(self) -> Any:
        """A batch."""
        ...

    @property
    def clip_norm(self) -> float | None:
        """Largest norm of all gradients together, or None."""
        ...

    @property
    def micro_batches(self) -> int:
        """Parts of a batch whose gradients are summed."""
        ...

    @property
    def mode(self) -> str:
        """How it runs: "program" or "eager"."""
        ...

    @property
    def fingerprint(self) -> str:
        """Plans of another one are refused."""
        ...

    @property
    def layouts(self) -> Layouts:
        """Of the model's parameters and buffers."""
        ...

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the parameters that have optimizer state, in the model's order."""
        ...

    @property
    def resident_bytes(self) -> int:
        """Parameters, buffers, optimizer state and batch (R)."""
        ...

    @property
    def eager_peak_bytes(self) -> int:
        """Peak of the step in plain PyTorch (R + A)."""
        ...

    def planned(self, budget: str | int | Budget, options: PlanOptions) -> Plan:
        """A plan within the budget."""
        ...

    def compile(self, plan: Plan) -> Any:
        """The runner of a plan."""
        ...

    def confirmed(self, plan: Plan, runner: Any) -> Plan:
        """The plan with this machine's figures."""
        ...
