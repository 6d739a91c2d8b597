"""A proximal term round any optimizer: training is pulled back to where it started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fedhybrid.executor.wrapped import WrappedOptimizer

__all__ = ["Proximal"]


@final
@dataclass(frozen=True, kw_only=True)
class Proximal(WrappedOptimizer):
    """Optimises loss + (mu / 2) ||w - anchor||^2 with `base`; the anchor is w when the optimizer's state was made.

    The term enters as its gradient, mu * (w - anchor), before the base sees the gradient; so weight decay and momentum
    of the base treat it like any other part of the loss.

    Attributes:
        base: The optimizer that takes the steps.
        mu: Strength of the pull, at least 0.

    Source: T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Eq. 2.
    """

    mu: float

    @property
    def state_names(self) -> tuple[str, ...]:
        """The anchor, then the base's own state."""
        return ("anchor", *self.base.state_names)

    @property
    def eager_scratch_tensors(self) -> int:
        """The pulled gradient, beside what the base holds."""
        return 1 + self.base.eager_scratch_tensors

    @property
    def eager_left_tensors(self) -> int:
        """None: torch.optim has no such rule, so eager PyTorch calls this one, which returns after each parameter."""
        return 0

    def init_state(self, param: Tensor) -> dict[str, Tensor]:
        """A copy of the parameter as it is now, and the base's fresh state."""
        return {"anchor": param.detach().clone(), **self.base.init_state(param)}

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """Adds the term's gradient, in place where the gradient is owned, and lets the base do its step."""
        # mu w, then -mu anchor: the same roundings in both cases, and no scratch where the gradient is owned.
        pulled = grad.add_(param, alpha=self.mu) if owned else grad.add(param, alpha=self.mu)
        pulled.sub_(state["anchor"], alpha=self.mu)
        self.base.update(name, param, pulled, state, step=step, lr=lr, owned=True)
