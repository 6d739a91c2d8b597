"""What stands where a program has an optimizer update, when the step is more than one plain update per gradient.

The planner prices updates through `protocols.Optimizer`; these wrap the user's optimizer so that it prices what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fedhybrid.executor.wrapped import WrappedOptimizer
from fedhybrid.protocols import Optimizer

__all__ = ["update_form"]


@final
@dataclass(frozen=True, kw_only=True)
class _ScaledUpdates(WrappedOptimizer):
    """Updates after clipping. Gradients that are owned were scaled in place before; the others are scaled here."""

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """See `protocols.Optimizer.update`."""
        grad = grad if owned else grad * 1.0
        self.base.update(name, param, grad, state, step=step, lr=lr, owned=True)


@final
@dataclass(frozen=True, kw_only=True)
class _SummedGradients(WrappedOptimizer):
    """In the program of a micro-batch: the gradient is added to a sum, and the updates come after the last one."""

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """Adds to a tensor of the parameter's layout; it stands for the sum, which is no state of the optimizer."""
        param.add_(grad)


def update_form(optimizer: Optimizer, clip_norm: float | None, micro_batches: int) -> Optimizer:
    """What runs where a program has an update."""
    if micro_batches > 1:
        return _SummedGradients(base=optimizer)
    return optimizer if clip_norm is None else _ScaledUpdates(base=optimizer)
