"""Parameter groups: options that differ between parameters, chosen by name or by number of dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, final

from fedhybrid.errors import ConfigError

__all__ = ["ParamGroup", "assign_groups", "group_of", "no_decay"]

_SELECTORS = ("match", "max_ndim")


@final
@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Options of the optimizer that hold for some parameters only; what is None is as in the optimizer.

    A parameter belongs to the first group that selects it, else it has the optimizer's own options.

    Attributes:
        match: Name pattern(s), as in `fnmatch`: `"*.bias"`, `("head.*", "pos_embed")`. A group selects a parameter if
            one of them fits its name in the model.
        max_ndim: Selects only parameters with at most so many dimensions.
        lr: Learning rate to start with. `TrainStep.set_lr(x)` multiplies it by x / (the optimizer's own lr), as
            PyTorch's schedulers multiply all groups by one factor.
        momentum, nesterov: For `SGD`. betas, eps: For `Adam` and `AdamW`. weight_decay: For all.

    Raises:
        ConfigError: It selects nothing in particular or changes nothing.

    >>> group = ParamGroup(match="*.bias", weight_decay=0.0)
    >>> group.selects("head.bias", (10,)), group.selects("head.weight", (10, 4))
    (True, False)
    """

    match: str | tuple[str, ...] | None = None
    max_ndim: int | None = None
    lr: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.match is None and self.max_ndim is None:
            problems.append("a ParamGroup needs match (name patterns) or max_ndim: else it would select everything")
        texts = (self.match,) if isinstance(self.match, str) or self.match is None else self.match
        if not isinstance(texts, tuple) or not texts or not all(isinstance(t, str | None) for t in texts):
            problems.append(f"ParamGroup.match must be a pattern or a tuple of patterns, got {self.match!r}")
        if self.max_ndim is not None and (not isinstance(self.max_ndim, int) or self.max_ndim < 0):
            problems.append(f"ParamGroup.max_ndim must be a whole number from 0 on, got {self.max_ndim!r}")
        if not self.options:
            problems.append(f"{self!r} changes nothing: give an option such as weight_decay=0.0")
        if problems:
            raise ConfigError(problems)

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ from the optimizer's own."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _SELECTORS}
        return {name: value for name, value in given.items() if value is not None}

    def selects(self, name: str, shape: Sequence[int]) -> bool:
        """Whether the group is for a parameter of this name and shape."""
        if self.max_ndim is not None and len(shape) > self.max_ndim:
            return False
        patterns = (self.match,) if isinstance(self.match, str) else self.match
        return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def no_decay() -> ParamGroup:
    """The usual group without weight decay: biases and the weights of norms, that is parameters of one dimension."""
    return ParamGroup(max_ndim=1, weight_decay=0.0)


def group_of(groups: Sequence[ParamGroup], name: str, shape: Sequence[int]) -> int:
    """Number of the first group that selects the parameter; -1 if none does."""
    return next((number for number, group in enumerate(groups) if group.selects(name, shape)), -1)


def assign_groups(groups: Sequence[ParamGroup], shapes: Mapping[str, Sequence[int]]) -> list[tuple[int, list[str]]]:
    """Names by group, in PyTorch's layout: first the parameters of no group (if any), then each group in order.

    Args:
        groups: Of the optimizer.
        shapes: Of all parameters by name, in the model's order.

    Returns:
        Pairs of group number (-1: none) and names in the model's order.

    Raises:
        ConfigError: A group is left without a parameter.
    """
    found: dict[int, list[str]] = {number: [] for number in range(-1, len(groups))}
    for name, shape in shapes.items():
        found[group_of(groups, name, shape)].append(name)
    problems = []
    for number, group in enumerate(groups):
        if not found[number]:
            taken = any(group.selects(name, shape) for name, shape in shapes.items())
            why = "an earlier group has all that it selects" if taken else f"names are like {', '.join([*shapes][:3])}"
            problems.append(f"groups[{number}] selects no parameter ({group!r}); {why}")
    if problems:
        raise ConfigError(problems)
    return [(number, names) for number, names in found.items() if names]
