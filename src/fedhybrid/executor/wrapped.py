"""An optimizer round another one: what it changes it overrides; all else is the base's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fedhybrid.protocols import Optimizer

__all__ = ["WrappedOptimizer"]


@dataclass(frozen=True, kw_only=True)
class WrappedOptimizer(ABC):
    """Implements `protocols.Optimizer` but for the update.

    Attributes:
        base: The optimizer inside.
    """

    base: Optimizer

    @property
    def lr(self) -> float:
        """The base's learning rate."""
        return self.base.lr

    @property
    def state_names(self) -> tuple[str, ...]:
        """The base's."""
        return self.base.state_names

    @property
    def eager_scratch_tensors(self) -> int:
        """The base's."""
        return self.base.eager_scratch_tensors

    @property
    def eager_left_tensors(self) -> int:
        """The base's."""
        return self.base.eager_left_tensors

    def rule_for(self, name: str, shape: tuple[int, ...]) -> Optimizer:
        """The same round the base's rule for the parameter."""
        return replace(self, base=self.base.rule_for(name, shape))

    def init_state(self, param: Tensor) -> dict[str, Tensor]:
        """The base's."""
        return self.base.init_state(param)

    @abstractmethod
    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """See `protocols.Optimizer.update`."""
