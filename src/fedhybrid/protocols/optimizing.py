"""What a rule that updates parameters must offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Optimizer"]


@runtime_checkable
class Optimizer(Protocol):
    """The rule that turns one gradient into one in-place parameter update.

    The engine calls `update` inside the step, right after the gradient is ready and the parameter has been read for
    the last time. All state is in the tensors of `init_state` and the count of steps, both of which the engine keeps.
    """

    @property
    def lr(self) -> float:
        """Learning rate to start with; `TrainStep.set_lr` changes it without a new capture."""
        ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state tensors, each of the parameter's shape and dtype."""
        ...

    @property
    def eager_scratch_tensors(self) -> int:
        """Parameter-sized temporaries that torch.optim's for-loop implementation of this rule holds at once."""
        ...

    @property
    def eager_left_tensors(self) -> int:
        """How many of those are still held while those of the next parameter are made."""
        ...

    def rule_for(self, name: str, shape: tuple[int, ...]) -> Optimizer:
        """The rule of one parameter: with the options of its group, or this very optimizer where there are none.

        Args:
            name: The parameter's name in its model.
            shape: Of the parameter.
        """
        ...

    def init_state(self, param: Tensor) -> dict[str, Tensor]:
        """Fresh state of one parameter."""
        ...

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """Updates `param` and `state` in place.

        Args:
            name: The parameter's name in its model (parameter groups go by name).
            param: Any shape.
            grad: Same shape as `param`.
            state: What `init_state` gave, as later calls left it.
            step: 1 at the first call for this parameter.
            lr: The current learning rate of this parameter (of its group).
            owned: True when nothing else reads the gradient's memory, so that it may be overwritten.
        """
        ...
