"""Models as a row of parts, one after the other, so that they can be cut between any two of them.

A model says what its parts are in a method `ordered()`; those of the table have one, and `torch.nn.Sequential` needs
none. Half a model is a copy of it without the other half's tensors, so names of tensors stay what they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from fedhybrid.errors import ConfigError

__all__ = ["Ordered", "Part", "in_order", "parts_of", "span_of", "tensor_names"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a model.

    Attributes:
        name: Of the part, unique in its model.
        holds: Paths of the submodules and parameters that belong to it, such as "stages.3" or "positions".
        run: Maps the output of the part before to that of this one; the first one's input is the model's.
    """

    name: str
    holds: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


@runtime_checkable
class Ordered(Protocol):
    """A model that says what its parts are."""

    def ordered(self) -> list[Part]:
        """Its parts; run one after the other they are its forward pass, and each tensor is held by one of them."""
        ...


def in_order(parts: Sequence[Part], x: Tensor) -> Tensor:
    """One part after the other."""
    for part in parts:
        x = part.run(x)
    return x


def parts_of(model: nn.Module) -> list[Part]:
    """The model's parts.

    Raises:
        ConfigError: It does not say what they are.
    """
    if isinstance(model, Ordered):
        return model.ordered()
    if isinstance(model, nn.Sequential):
        children = [(name, child) for name, child in model._modules.items() if child is not None]
        held = [id(child) for _, child in children if any(True for _ in child.parameters())]
        if len(set(held)) == len(held):
            return [Part(name=name, holds=(name,), run=child) for name, child in children]
        raise ConfigError(
            "the model (a torch.nn.Sequential) has a module with parameters in two places, so it cannot be cut between "
            "them; give each place a module of its own"
        )
    raise ConfigError(
        f"the model ({type(model).__name__}) must be one that can be cut into parts: a torch.nn.Sequential, or with a "
        "method ordered() that returns its parts (fedhybrid.models.ordered.Part); "
        "`fedhybrid list models` shows some that can"
    )


def tensor_names(model: nn.Module, part: Part) -> tuple[str, ...]:
    """Names of the parameters and buffers that a part holds, in the model's order."""
    named = (*model.named_parameters(), *model.named_buffers())
    return tuple(name for name, _ in named if any(name == path or name.startswith(f"{path}.") for path in part.holds))


def span_of(model: nn.Module, first: int, last: int) -> nn.Module:
    """The parts from `first` to before `last` as a model of their own: a copy without the tensors of all others.

    Its input is the output of part `first - 1`, its tensors have the model's names.

    Raises:
        ConfigError: The model does not say what its parts are.
    """
    parts = parts_of(model)
    assert 0 <= first < last <= len(parts), (first, last, len(parts))
    span = copy.deepcopy(model)
    for number, part in enumerate(parts):
        if not first <= number < last:
            for path in part.holds:
                _empty(span, path)
    span.__class__ = _span_class(cast(Hashable, type(span)))
    cast(Any, span).span_parts = (first, last)
    return span


def _empty(model: nn.Module, path: str) -> None:
    """Takes away what is there, and leaves a place that holds nothing."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    if name in parent._modules:
        setattr(parent, name, nn.Identity())
    elif parent._parameters.get(name) is not None:
        parent.register_parameter(name, None)
    elif name in parent._buffers:
        parent.register_buffer(name, None)


class _Span:
    """The forward pass of some of a model's parts; stands before the model's class."""

    span_parts: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.span_parts
        return in_order(parts_of(cast(nn.Module, self))[first:last], x)


@cache
def _span_class(model_class: Hashable) -> type[nn.Module]:
    assert isinstance(model_class, type)
    return type(f"{model_class.__name__}Span", (_Span, model_class), {})
