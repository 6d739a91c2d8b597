"""Weights from elsewhere: whether they are a model's, and a new last layer for other classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors, tensors_of

__all__ = ["fitting", "head_of", "head_tensors", "redraw_head"]

_NEAR_ZERO = 0.01  # standard deviation of a new head's weights: its first scores are all but equal
_NAMED = 6


def head_of(model: nn.Module) -> str:
    """The path of the model's last linear layer, which gives the scores of the classes.

    Raises:
        ConfigError: It has none.
    """
    paths: list[str] = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not paths:
        raise ConfigError(f"the model ({type(model).__name__}) must end in a torch.nn.Linear to get a new head")
    return paths[-1]


def head_tensors(model: nn.Module) -> frozenset[str]:
    """Names of that layer's tensors.

    Raises:
        ConfigError: As `head_of`.
    """
    head = head_of(model)
    return frozenset(name for name in tensors_of(model) if name.rpartition(".")[0] == head)


def redraw_head(model: nn.Module, seed: int) -> None:
    """Draws the last linear layer anew, near zero, in place.

    Raises:
        ConfigError: As `head_of`.
    """
    layer = model.get_submodule(head_of(model))
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.normal_(0.0, _NEAR_ZERO, generator=torch.Generator().manual_seed(seed))
        if layer.bias is not None:
            layer.bias.zero_()


def fitting(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str, but: frozenset[str]) -> Tensors:
    """The tensors that the model takes over, by its names.

    Args:
        model: Whose names, shapes and types they must have.
        tensors: What there is.
        source: Where it comes from, for messages.
        but: Names that are not taken over; there they may be missing, or of any form.

    Raises:
        ConfigError: Tensors are missing, too many, or of other shapes or types; all at once.
    """
    own = {name: tensor for name, tensor in tensors_of(model).items() if name not in but}
    found = {name: tensor for name, tensor in tensors.items() if name not in but}
    problems = []
    for what, names in (("lacks", own.keys() - found.keys()), ("has, and the model has not,", found.keys() - own)):
        if names:
            listed = sorted(names)
            more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
            problems.append(f"{source} {what} {', '.join(listed[:_NAMED])}{more}")
    problems += [
        f"{source}: {name} must be {_form(tensor)}, found {_form(found[name])}"
        for name, tensor in own.items()
        if name in found and _form(tensor) != _form(found[name])
    ]
    if problems:
        raise ConfigError(problems)
    return {name: found[name] for name in own}


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
