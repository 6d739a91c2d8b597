"""Where a model is cut, and what of it a device then trains.

A cut is a number of parts: a device that is given cut 3 holds the first three parts of the model (`models.ordered`),
the server the others. The first few of the device's may be frozen. All of it is said by the submodel's name: "cut-3",
"cut-5.f2" with two frozen parts, "" for the whole model on the device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.graph import asked_loss
from fedhybrid.models.ordered import parts_of, span_of, tensor_names
from fedhybrid.protocols import Submodel

__all__ = ["Cut", "device_half", "possible_cuts", "tensors_by_part"]

_NAME = re.compile(r"cut-([1-9]\d*)(?:\.f([1-9]\d*))?")


@dataclass(frozen=True, kw_only=True, order=True)
class Cut:
    """How many parts a device holds, and how many of these, the first ones, it does not train.

    >>> Cut(parts=5, frozen=2).name(of=9), Cut(parts=9).name(of=9), Cut.named("cut-3", of=9)
    ('cut-5.f2', '', Cut(parts=3, frozen=0))
    """

    parts: int
    frozen: int = 0

    def name(self, *, of: int) -> str:
        """Of the submodel, where the model has `of` parts."""
        if self.parts == of and not self.frozen:
            return ""
        return f"cut-{self.parts}" + (f".f{self.frozen}" if self.frozen else "")

    @classmethod
    def named(cls, name: str, *, of: int) -> Cut:
        """The cut that a submodel's name stands for.

        Raises:
            ConfigError: The model of `of` parts has no such cut.
        """
        if not name:
            return cls(parts=of)
        found = _NAME.fullmatch(name)
        cut = cls(parts=int(found[1]), frozen=int(found[2] or 0)) if found else None
        if cut is None or not cut.frozen < cut.parts <= of:
            raise ConfigError(
                f"submodel {name!r} must be called cut-C or cut-C.fF with 0 < F < C and at most the model's {of} parts"
            )
        return cut


def tensors_by_part(model: nn.Module) -> list[tuple[str, ...]]:
    """Names of the tensors, parameters and buffers, that each part holds, in order.

    Raises:
        ConfigError: The model does not say what its parts are.
    """
    return [tensor_names(model, part) for part in parts_of(model)]


def possible_cuts(model: nn.Module) -> list[int]:
    """Cuts with something to train on the device, ascending; the last one is the whole model.

    Raises:
        ConfigError: The model does not say what its parts are.
    """
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    names = tensors_by_part(model)
    first = next((number for number, own in enumerate(names, start=1) if trained.intersection(own)), len(names))
    return list(range(first, len(names) + 1))


def device_half(whole: Submodel, cut: Cut) -> Submodel:
    """What a device trains: the parts before the cut, whose loss the server says, or the whole model with its own."""
    half = span_of(whole.module, 0, cut.parts)
    parts = parts_of(half)
    frozen = {name for part in parts[: cut.frozen] for name in tensor_names(half, part)}
    for name, param in half.named_parameters():
        param.requires_grad_(param.requires_grad and name not in frozen)
    loss_fn = asked_loss if cut.parts < len(parts) else whole.loss_fn
    return Submodel(module=half, loss_fn=loss_fn, optimizer=whole.optimizer)
