"""Classifiers at several depths of one model, and its first parts with the classifiers there.

Classifiers are the exits of `models/exits.py`, at places that divide the model's parts evenly; the last classifier is
the model's own. They begin with zeros: one that nobody has trained says nothing, also in a mean of scores. The idea is
DepthFL's (`methods/depthfl.py`).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.exits import channels_at, exit_names, with_exits
from fedhybrid.models.ordered import parts_of, span_of, tensor_names

__all__ = ["first_levels", "level_names", "levels_of", "with_classifiers", "without_classifiers"]


def with_classifiers(model: nn.Module, sample: Tensor, levels: int, *, ensemble: bool) -> nn.Module:
    """A copy with classifiers at so many depths, its own among them, or at as many as it has parts to end at.

    Args:
        model: One that can be cut into parts, the last of which is the classifier.
        sample: Inputs, shape (batch, ...), of which only the form counts.
        levels: At least 1.
        ensemble: Whether its forward pass gives the mean of all classifiers' scores; else those of its own.

    Raises:
        ConfigError: As `with_exits`.
    """
    made = with_exits(model, sample)
    bodies = len(parts_of(made)) - 1
    levels = min(levels, bodies)
    if levels < 1:
        raise ConfigError(f"the model ({type(model).__name__}) must have a part before its classifier")
    places = {str(math.ceil(level * bodies / levels)) for level in range(1, levels)}
    exits = cast(nn.ModuleDict, made.exits)
    for parameter in exits.parameters():
        nn.init.zeros_(parameter)
    made.exits = nn.ModuleDict({place: exits[place] for place in exits if place in places}).train(model.training)
    if ensemble and places:
        made.__class__ = _class_of_mean(cast(Any, type(made)))
    return made


def levels_of(model: nn.Module) -> list[int]:
    """After which parts there are classifiers, counted from 1, ascending; the last is the number of parts."""
    return [*sorted(int(place) for place in cast(nn.ModuleDict, model.exits)), len(parts_of(model))]


def level_names(model: nn.Module, level: int) -> tuple[str, ...]:
    """Names of the tensors that `first_levels` has."""
    ends = levels_of(model)
    held = [name for part in parts_of(model)[: ends[level - 1]] for name in tensor_names(model, part)]
    return (*held, *(name for end in ends[:level] if end != ends[-1] for name in exit_names(end)))


def first_levels(model: nn.Module, level: int) -> nn.Module:
    """A copy that ends at the classifier of that level, counted from 1; it gives the scores of all up to there.

    Its output is (level, batch, classes), the shallowest classifier first.

    Args:
        model: Made by `with_classifiers`.
        level: Which.
    """
    ends = levels_of(model)
    own = span_of(model, 0, ends[level - 1])
    exits = cast(nn.ModuleDict, own.exits)
    own.exits = nn.ModuleDict({str(end): exits[str(end)] for end in ends[:level] if str(end) in exits})
    own.__class__ = _class_of_levels(cast(Any, type(own)))
    return own


def without_classifiers(model: nn.Module) -> nn.Module:
    """A copy with its own classifier alone."""
    own = span_of(model, 0, len(parts_of(model)))
    own.exits = nn.ModuleDict()
    return own


def _scores(model: nn.Module, x: Tensor, last: int) -> list[Tensor]:
    """Of each classifier on the way through the first parts."""
    exits, found, classes_at_end = cast(nn.ModuleDict, model.exits), list[Tensor](), len(parts_of(model))
    for number, part in enumerate(parts_of(model)[:last], start=1):
        x = part.run(x)
        if str(number) in exits:
            mean_over = [d for d in range(1, x.ndim) if d != channels_at(model, x.ndim)]
            found.append(exits[str(number)](x.mean(dim=mean_over) if mean_over else x))
    return [*found, x] if last == classes_at_end else found


class _Levels:
    """All scores; stands before the class of a span."""

    span_parts: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of each level, (levels, batch, classes)."""
        return torch.stack(_scores(cast(nn.Module, self), x, self.span_parts[1]))


class _Mean:
    """The mean of all classifiers' scores; stands before the class of a model with exits."""

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, (batch, classes)."""
        model = cast(nn.Module, self)
        return torch.stack(_scores(model, x, len(parts_of(model)))).mean(dim=0)


@cache
def _class_of_levels(span_class: Any) -> type[nn.Module]:
    return type(f"{span_class.__name__}Levels", (_Levels, span_class), {})


@cache
def _class_of_mean(model_class: Any) -> type[nn.Module]:
    return type(f"{model_class.__name__}Mean", (_Mean, model_class), {})
