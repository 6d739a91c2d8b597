"""Optimizers that keep weights on the integer grid: within its range, or also rounded up or down at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.executor import WrappedOptimizer
from fedhybrid.protocols import Optimizer
from fedhybrid.seeds import derive_seed

__all__ = ["IntegerSteps", "WithinGrid", "rounded_at_random"]


def rounded_at_random(values: Tensor, seed: int, limit: int | None) -> Tensor:
    """Each value rounded up with a probability of its fraction, else down, and kept within the limit.

    Args:
        values: float32.
        seed: Decides the draws.
        limit: Largest magnitude; None for none.
    """
    generator = torch.Generator(device=values.device).manual_seed(seed)
    draws = torch.rand(values.shape, generator=generator, device=values.device)
    low = values.floor()
    low.add_(draws.lt(values - low))  # adding the draw first would itself be rounded where values are large
    return low if limit is None else low.clamp_(-limit, limit)


@dataclass(frozen=True, kw_only=True)
class _OnGrid(WrappedOptimizer):
    """Does something to some parameters beside what the base does to all.

    Attributes:
        limits: For each of them, by name, its largest magnitude, or None; the others are the base's alone.
    """

    limits: tuple[tuple[str, int | None], ...]

    @property
    def eager_left_tensors(self) -> int:
        """None: torch.optim has no such rule, so eager PyTorch calls this one, which returns after each parameter."""
        return 0

    def rule_for(self, name: str, shape: tuple[int, ...]) -> Optimizer:
        """The base's rule, with this one round it for a parameter that has a limit."""
        base = self.base.rule_for(name, shape)
        own = tuple((other, limit) for other, limit in self.limits if other == name)
        return replace(self, base=base, limits=own) if own else base


@final
@dataclass(frozen=True, kw_only=True)
class IntegerSteps(_OnGrid):
    """Steps of `base` on float copies of integer parameters, rounded at random to integers; RECONSTRUCTED.

    Where a step is a hundredth of the grid, a hundredth of the parameters move by one. The draws follow from the seed
    of torch's generator (that of the task, in a federation), the parameter's name and the count of steps, so they do
    not depend on the order of updates.

    Attributes:
        base: Takes the steps.
        limits: For each integer parameter by name its largest magnitude, or None; the others are the base's alone.

    Raises:
        ConfigError: The base holds state: of the integers' type, as memory is planned for it, that would be no good.
    """

    def __post_init__(self) -> None:
        if self.base.state_names:
            raise ConfigError(
                "integer steps need an optimizer without state, SGD without momentum; found one that holds "
                f"{', '.join(self.base.state_names)} for each parameter"
            )

    @property
    def eager_scratch_tensors(self) -> int:
        """The float copy, its floor, the random numbers, beside what the base holds."""
        return 3 + self.base.eager_scratch_tensors

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """Lets the base move a float copy, and rounds it."""
        limits = dict(self.limits)
        if name not in limits:
            self.base.update(name, param, grad, state, step=step, lr=lr, owned=owned)
            return
        moved = param.to(torch.float32, copy=True)
        same = grad.dtype == torch.float32
        self.base.update(name, moved, grad if same else grad.float(), state, step=step, lr=lr, owned=owned or not same)
        seed = derive_seed(torch.initial_seed(), purpose=f"rounding of {name}", round_index=step)
        param.copy_(rounded_at_random(moved, seed, limits[name]))


@final
@dataclass(frozen=True, kw_only=True)
class WithinGrid(_OnGrid):
    """Steps of `base`, after each of which some parameters are clamped, so that float32 ones saturate as int8 does.

    Ours. Beyond the grid the forward pass would hold them at its end, and they would need as many steps back before
    they changed anything again.

    Attributes:
        base: Takes the steps.
        limits: Largest magnitude of each of these parameters, by name; the others are the base's alone.
    """

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """Lets the base move it, and clamps it."""
        self.base.update(name, param, grad, state, step=step, lr=lr, owned=owned)
        limit = dict(self.limits).get(name)
        if limit is not None:
            param.clamp_(-limit, limit)
