"""Early exits for models in parts: a small classifier after each part, and submodels that end at one.

An exit is the mean of the features over everything but samples and channels, and one linear layer. That form is ours;
FedEL (`methods/fedel.py`) only asks for a light head at the end of its window.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.ordered import Ordered, Part, in_order, parts_of, span_of, tensor_names
from fedhybrid.seeds import derive_seed

__all__ = ["Layout", "channels_at", "exit_names", "layout_of", "until", "with_exits"]

_EXITS = "exits"
_LAYOUT = f"{_EXITS}.layout"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which part holds which tensor; parts count from 1, nearest the input.

    Attributes:
        params: Part of each parameter, names sorted; parameters of exits are not among them.
        buffers: Part of each buffer.
        last: Number of parts.
        exits: Parts after which there is an exit.
    """

    params: Mapping[str, int]
    buffers: Mapping[str, int]
    last: int
    exits: frozenset[int]

    def within(self, first: int, last: int) -> tuple[str, ...]:
        """Parameters of the parts from `first` to `last`, both included."""
        return tuple(name for name, part in self.params.items() if first <= part <= last)

    def until(self, last: int) -> tuple[str, ...]:
        """All tensors of the submodel that ends after part `last`, its exit included."""
        held = [name for name, part in (*self.params.items(), *self.buffers.items()) if part <= last]
        return (*held, *(exit_names(last) if last in self.exits else ()))


def exit_names(part: int) -> tuple[str, str]:
    """Names of the tensors of the exit after a part."""
    return f"{_EXITS}.{part}.weight", f"{_EXITS}.{part}.bias"


def layout_of(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The layout of a model with exits, from its tensors; None for those of another model."""
    stored = tensors.get(_LAYOUT)
    if stored is None:
        return None
    names = sorted(name for name in tensors if not name.startswith(f"{_EXITS}."))
    parts = dict(zip(names, stored.tolist(), strict=True))
    return Layout(
        params={name: part for name, part in parts.items() if part > 0},
        buffers={name: -part for name, part in parts.items() if part < 0},
        last=int(stored.abs().max()),
        exits=frozenset(
            int(name.split(".")[1]) for name in tensors if name.startswith(f"{_EXITS}.") and name != _LAYOUT
        ),
    )


def with_exits(model: nn.Module, sample: Tensor, *, early: bool = True) -> nn.Module:
    """A copy with an exit after each part but the last, which is the classifier; the forward pass stays as it is.

    The exits are its submodule `exits`; their first values follow from the model's own.

    Args:
        model: One that can be cut into parts.
        sample: Inputs, shape (batch, ...), of which only the form counts.
        early: False adds no exit, but the buffer that `layout_of` reads.

    Raises:
        ConfigError: It has no parts, its output is not (batch, classes), or it has a part called `exits`.
    """
    if hasattr(model, _EXITS):
        raise ConfigError(f"the model ({type(model).__name__}) must not have a submodule called {_EXITS!r}; rename it")
    parts = parts_of(model)
    shapes = _shapes(model, sample)
    if len(shapes[-1]) != 2:
        raise ConfigError(
            f"early exits need a model whose output is (batch, classes); that of {type(model).__name__} has shape "
            f"{list(shapes[-1])}"
        )
    part_of = {name: number for number, part in enumerate(parts, start=1) for name in tensor_names(model, part)}
    buffers = {name for name, _ in model.named_buffers()}
    signed = [-part_of[name] if name in buffers else part_of[name] for name in sorted(part_of)]
    exits = nn.ModuleDict()
    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng(devices=[]):
        for number, shape in enumerate(shapes[:-1] if early else [], start=1):
            torch.manual_seed(derive_seed(_fingerprint(model), purpose=f"exit {number}"))
            exits[str(number)] = nn.Linear(shape[channels_at(model, len(shape))], shapes[-1][1], dtype=dtype)
    exits.register_buffer("layout", torch.tensor(signed, dtype=torch.int64))
    made = copy.deepcopy(model)
    made.exits = exits.train(model.training)
    made.__class__ = _class_with_exits(cast(Any, type(model)))
    return made


def until(model: nn.Module, last: int, trained: Collection[str]) -> nn.Module:
    """A copy of a model with exits that ends after part `last`, with the exit there; after the last, as it always does.

    Only its own tensors are in it, under their names. No gradient is computed for what lies before the first of the
    trained tensors; parts that are frozen run in the mode that the model is in.

    Args:
        model: Made by `with_exits`.
        last: A part, from 1.
        trained: Names of the parameters that are not frozen; those of the exit never are.
    """
    places = {ndim: channels_at(model, ndim) for ndim in (2, 3, 4, 5)}
    own = span_of(model, 0, last)
    exits = cast(nn.ModuleDict, own.exits)
    own.exits = nn.ModuleDict({str(last): exits[str(last)]} if str(last) in exits else {})
    own.__class__ = _class_until(cast(Any, type(own)))
    cast(Any, own).ends_at = (str(last), places)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(name in trained or name.startswith(f"{_EXITS}."))
    return own


def _shapes(model: nn.Module, sample: Tensor) -> list[torch.Size]:
    """Of what each part gives; nothing is computed."""
    twin = copy.deepcopy(model).to("meta")
    x, shapes = sample.to("meta"), []
    for part in parts_of(twin):
        x = part.run(x)
        shapes.append(x.shape)
    return shapes


def channels_at(model: nn.Module, ndim: int) -> int:
    """Maps have their channels behind the batch; so have signals, but tokens have them at the end."""
    tokens = ndim == 3 and not any(isinstance(module, nn.Conv1d) for module in model.modules())
    return ndim - 1 if tokens else 1


def _fingerprint(model: nn.Module) -> int:
    first = next(model.parameters()).detach().contiguous().view(-1).view(torch.uint8)
    return int.from_bytes(hashlib.blake2b(first.numpy().tobytes(), digest_size=8).digest(), "big")


class _Exits:
    """The parts of a model without its exits; stands before the model's class."""

    def ordered(self) -> list[Part]:
        """Its parts."""
        above: Any = super()
        if isinstance(above, Ordered) or hasattr(above, "ordered"):
            return cast(list[Part], above.ordered())
        children = cast(nn.Module, self)._modules  # unlike named_children, each place of a module that has several
        return [
            Part(name=name, holds=(name,), run=child)
            for name, child in children.items()
            if child is not None and name != _EXITS
        ]

    def forward(self, x: Tensor) -> Tensor:
        """One part after the other."""
        return in_order(self.ordered(), x)


class _Until:
    """The first parts and an exit; stands before the class of a span."""

    ends_at: tuple[str, dict[int, int]]

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, (batch, classes)."""
        x = cast(Any, super()).forward(x)
        last, places = self.ends_at
        exits = cast(Any, self).exits
        if last not in exits:
            return x
        mean_over = [d for d in range(1, x.ndim) if d != places[x.ndim]]
        return cast(Tensor, exits[last](x.mean(dim=mean_over) if mean_over else x))


@cache
def _class_with_exits(model_class: Any) -> type[nn.Module]:
    return type(f"{model_class.__name__}WithExits", (_Exits, model_class), {})


@cache
def _class_until(span_class: Any) -> type[nn.Module]:
    return type(f"{span_class.__name__}Until", (_Until, span_class), {})
