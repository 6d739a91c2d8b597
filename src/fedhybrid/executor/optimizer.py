"""SGD, Adam and AdamW with the arithmetic of torch.optim's default (for-loop) implementation, bit for bit.

The step applies them to one parameter at a time, right after its gradient is ready. Where the gradient's memory is
free afterwards (`owned`), it serves as scratch, so that an update needs no memory of its own; the order of roundings
is that of torch.optim in either case. All take `groups` (see `ParamGroup`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.executor.groups import ParamGroup, assign_groups, group_of
from fedhybrid.protocols import Optimizer

__all__ = ["SGD", "Adam", "AdamW", "groups_of", "torch_twin"]

Rule = TypeVar("Rule", "SGD", "Adam", "AdamW")


@final
@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum, Nesterov momentum and L2 weight decay.

    Source: `torch.optim.SGD(foreach=False)`; dampening is not supported (0, torch's default).

    Raises:
        ConfigError: A negative option, or `nesterov` without momentum.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    groups: tuple[ParamGroup, ...] = ()

    def __post_init__(self) -> None:
        problems = _negative(self, ("lr", "momentum", "weight_decay"))
        if self.nesterov and self.momentum == 0:
            problems.append("nesterov=True needs a momentum above 0")
        problems += _group_problems(self, ("lr", "momentum", "nesterov", "weight_decay"))
        if problems:
            raise ConfigError(problems)

    @property
    def state_names(self) -> tuple[str, ...]:
        """`momentum_buffer` if there is momentum."""
        return ("momentum_buffer",) if self.momentum else ()

    @property
    def eager_scratch_tensors(self) -> int:
        """Parameter-sized temporaries that torch.optim holds at once."""
        return int(self.weight_decay != 0) + int(self.nesterov)

    @property
    def eager_left_tensors(self) -> int:
        """None."""
        return 0

    def rule_for(self, name: str, shape: tuple[int, ...]) -> SGD:
        """See `protocols.Optimizer.rule_for`."""
        return _rule_for(self, name, tuple(shape)) if self.groups else self

    def init_state(self, param: Tensor) -> dict[str, Tensor]:
        """A zero momentum buffer."""
        return {name: torch.zeros_like(param) for name in self.state_names}

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """See `protocols.Optimizer.update`."""
        if self.groups:
            rule = self.rule_for(name, tuple(param.shape))
            rule.update(name, param, grad, state, step=step, lr=lr, owned=owned)
            return
        if self.weight_decay != 0:
            grad = grad.add_(param, alpha=self.weight_decay) if owned else grad.add(param, alpha=self.weight_decay)
            owned = True
        if self.momentum != 0:
            buffer = state["momentum_buffer"]
            if step == 1:  # torch starts with a copy of the gradient, which keeps even the sign of its zeros
                buffer.copy_(grad)
            else:
                buffer.mul_(self.momentum).add_(grad, alpha=1)
            if not self.nesterov:
                grad = buffer
            else:
                grad = grad.add_(buffer, alpha=self.momentum) if owned else grad.add(buffer, alpha=self.momentum)
        param.add_(grad, alpha=-lr)


@final
@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with L2 weight decay added to the gradient.

    Source: `torch.optim.Adam(foreach=False)`; Kingma and Ba, "Adam", ICLR 2015, Algorithm 1.

    Raises:
        ConfigError: A negative option, or a beta outside [0, 1).
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    groups: tuple[ParamGroup, ...] = ()

    def __post_init__(self) -> None:
        _check_adam(self)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Running means of the gradient and of its square."""
        return ("exp_avg", "exp_avg_sq")

    @property
    def eager_scratch_tensors(self) -> int:
        """Parameter-sized temporaries that torch.optim holds at once."""
        return 2 + int(self.weight_decay != 0)

    @property
    def eager_left_tensors(self) -> int:
        """The denominator."""
        return 1

    def rule_for(self, name: str, shape: tuple[int, ...]) -> Adam:
        """See `protocols.Optimizer.rule_for`."""
        return _rule_for(self, name, tuple(shape)) if self.groups else self

    def init_state(self, param: Tensor) -> dict[str, Tensor]:
        """Two zero tensors."""
        return {name: torch.zeros_like(param) for name in self.state_names}

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """See `protocols.Optimizer.update`."""
        if self.groups:
            rule = self.rule_for(name, tuple(param.shape))
            rule.update(name, param, grad, state, step=step, lr=lr, owned=owned)
            return
        if self.weight_decay != 0:
            grad = grad.add_(param, alpha=self.weight_decay) if owned else grad.add(param, alpha=self.weight_decay)
            owned = True
        _adam_step(param, grad, state, betas=self.betas, eps=self.eps, step=step, lr=lr, owned=owned)


@final
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay.

    Source: `torch.optim.AdamW(foreach=False)`; Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
    ICLR 2019, Algorithm 2.

    Raises:
        ConfigError: A negative option, or a beta outside [0, 1).
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    groups: tuple[ParamGroup, ...] = ()

    def __post_init__(self) -> None:
        _check_adam(self)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Running means of the gradient and of its square."""
        return ("exp_avg", "exp_avg_sq")

    @property
    def eager_scratch_tensors(self) -> int:
        """Parameter-sized temporaries that torch.optim holds at once."""
        return 2

    @property
    def eager_left_tensors(self) -> int:
        """The denominator."""
        return 1

    def rule_for(self, name: str, shape: tuple[int, ...]) -> AdamW:
        """See `protocols.Optimizer.rule_for`."""
        return _rule_for(self, name, tuple(shape)) if self.groups else self

    def init_state(self, param: Tensor) -> dict[str, Tensor]:
        """Two zero tensors."""
        return {name: torch.zeros_like(param) for name in self.state_names}

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """See `protocols.Optimizer.update`."""
        if self.groups:
            rule = self.rule_for(name, tuple(param.shape))
            rule.update(name, param, grad, state, step=step, lr=lr, owned=owned)
            return
        if self.weight_decay != 0:
            param.mul_(1 - lr * self.weight_decay)
        _adam_step(param, grad, state, betas=self.betas, eps=self.eps, step=step, lr=lr, owned=owned)


def _adam_step(
    param: Tensor,
    grad: Tensor,
    state: Mapping[str, Tensor],
    *,
    betas: tuple[float, float],
    eps: float,
    step: int,
    lr: float,
    owned: bool,
) -> None:
    first, second = state["exp_avg"], state["exp_avg_sq"]
    first.lerp_(grad, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    step_size = lr / (1 - betas[0] ** step)
    correction_sqrt = (1 - betas[1] ** step) ** 0.5
    # From here on the gradient is not read any more: its memory takes the denominator.
    denominator = torch.sqrt(second, out=grad) if owned else second.sqrt()
    denominator.div_(correction_sqrt).add_(eps)
    param.addcdiv_(first, denominator, value=-step_size)


@lru_cache(maxsize=4096)
def _rule_for(optimizer: Rule, name: str, shape: tuple[int, ...]) -> Rule:
    number = group_of(optimizer.groups, name, shape)
    return replace(optimizer, groups=(), **(optimizer.groups[number].options if number >= 0 else {}))


def _group_problems(optimizer: SGD | Adam | AdamW, known: tuple[str, ...]) -> list[str]:
    """What is wrong with the groups of an optimizer whose own options are good."""
    groups: object = optimizer.groups
    if not isinstance(groups, tuple) or not all(isinstance(group, ParamGroup) for group in groups):
        return [f"groups must be a tuple of fh.ParamGroup, got {groups!r}"]
    problems = []
    for number, group in enumerate(optimizer.groups):
        kind = type(optimizer).__name__
        strange = [name for name in group.options if name not in known]
        problems += [f"groups[{number}]: {kind} has no option {name!r}; it has {', '.join(known)}" for name in strange]
        if "lr" in group.options and optimizer.lr == 0:
            problems.append(f"groups[{number}]: its lr is scaled with the optimizer's, which must then be above 0")
        if strange:
            continue
        try:
            rule = replace(optimizer, groups=(), **group.options)
        except ConfigError as error:
            problems += [f"groups[{number}]: {problem}" for problem in error.problems]
            continue
        if rule.state_names != optimizer.state_names:
            problems.append(f"groups[{number}]: momentum must be 0 in all groups or above 0 in all groups")
    return problems


def groups_of(optimizer: Optimizer) -> tuple[ParamGroup, ...]:
    """The parameter groups of an optimizer; a rule round another one has those of the inner one."""
    base = getattr(optimizer, "base", None)
    if isinstance(base, Optimizer):
        return groups_of(base)
    groups = getattr(optimizer, "groups", ())
    return groups if isinstance(groups, tuple) else ()


def torch_twin(
    optimizer: Optimizer, params: Iterable[Tensor] | Iterable[tuple[str, Tensor]]
) -> torch.optim.Optimizer | None:
    """The torch.optim optimizer over `params` that takes the same steps, or None where torch has none.

    Args:
        optimizer: Ours.
        params: As torch.optim takes them: tensors or, as parameter groups need it, pairs of name and tensor.
    """
    pairs = (given if isinstance(given, tuple) else (str(i), given) for i, given in enumerate(params))
    named: dict[str, Tensor] = dict(pairs)
    shapes = {name: tuple(param.shape) for name, param in named.items()}
    groups: list[dict[str, Any]] = [
        {"params": [named[name] for name in names], **_options(optimizer.rule_for(names[0], shapes[names[0]]))}
        for _, names in assign_groups(groups_of(optimizer), shapes)
    ]
    match optimizer:
        case SGD():
            return torch.optim.SGD(groups, lr=optimizer.lr)
        case Adam():
            return torch.optim.Adam(groups, lr=optimizer.lr)
        case AdamW():
            return torch.optim.AdamW(groups, lr=optimizer.lr)
    return None


def _options(rule: Optimizer) -> dict[str, Any]:
    match rule:
        case SGD():
            names = ["lr", "momentum", "nesterov", "weight_decay"]
        case Adam() | AdamW():
            names = ["lr", "betas", "eps", "weight_decay"]
        case _:
            names = ["lr"]
    return {name: getattr(rule, name) for name in names}


def _negative(optimizer: object, names: tuple[str, ...]) -> list[str]:
    given = {name: getattr(optimizer, name) for name in names}
    bad = {n: v for n, v in given.items() if not isinstance(v, (int, float)) or not 0 <= v < math.inf}
    return [f"{name} must not be negative and must be a finite number, got {value!r}" for name, value in bad.items()]


def _check_adam(optimizer: Adam | AdamW) -> None:
    problems = _negative(optimizer, ("lr", "eps", "weight_decay"))
    betas: object = optimizer.betas
    if not isinstance(betas, tuple) or len(betas) != 2 or not all(isinstance(b, (int, float)) for b in betas):
        problems.append(f"betas must be a pair of numbers, got {betas!r}")
    else:
        problems += [f"betas must lie in [0, 1), got {beta}" for beta in betas if not 0 <= beta < 1]
    problems += _group_problems(optimizer, ("lr", "betas", "eps", "weight_decay"))
    if problems:
        raise ConfigError(problems)
