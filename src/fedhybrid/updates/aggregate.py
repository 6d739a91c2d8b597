"""Updates of which some hold only a part of the model: whether they can be used, and their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedhybrid.registry import nearest_hint
from fedhybrid.tree import Tensors, average

__all__ = ["average_present", "check_update", "not_finite"]


def average_present(
    reference: Mapping[str, Tensor],
    many: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    masks: Sequence[Mapping[str, Tensor]],
) -> Tensors:
    """Weighted mean of each element over the updates that hold it; where none does, the reference's value.

    Summed in float64, integers rounded to the nearest, and to the same bits as `tree.average` where every update holds
    everything. What an update says outside its mask is not looked at.

    Args:
        reference: The model: all names, their shapes and types.
        many: Updates, each with some of the reference's names.
        weights: Of each update; not negative. One of weight zero holds nothing.
        masks: Of each update: for some of its names a bool tensor of the same shape, False where it holds nothing.
    """
    assert len(many) == len(weights) == len(masks)
    if sum(weights) > 0 and not any(masks) and all(update.keys() == reference.keys() for update in many):
        mean = average(many, weights)
        return {name: mean[name] for name in reference}
    held: Tensors = {}
    for name, tensor in reference.items():
        holders = [
            (update[name], float(weight), mask.get(name))
            for update, weight, mask in zip(many, weights, masks, strict=True)
            if name in update and weight > 0
        ]
        if not holders:
            held[name] = tensor.detach().clone()
        elif all(mask is None for _, _, mask in holders):
            held[name] = average([{name: values} for values, _, _ in holders], [w for _, w, _ in holders])[name]
        else:
            held[name] = _masked_mean(tensor, holders)
    return held


def _masked_mean(reference: Tensor, holders: Sequence[tuple[Tensor, float, Tensor | None]]) -> Tensor:
    """The mean of (values, weight, mask) by element."""
    total = torch.zeros(reference.shape, dtype=torch.float64)
    weight_there = torch.zeros(reference.shape, dtype=torch.float64)
    for values, weight, mask in holders:
        wide = values.detach().to("cpu", torch.float64)
        if mask is None:
            total.add_(wide, alpha=weight)
            weight_there.add_(weight)
        else:
            total.add_(wide.masked_fill(~mask, 0.0), alpha=weight)
            weight_there.add_(mask, alpha=weight)
    there = weight_there > 0
    mean = total.div_(weight_there.masked_fill_(~there, 1.0))
    rounded = (mean if reference.is_floating_point() else mean.round()).to(reference.dtype)
    return torch.where(there, rounded, reference.detach().to("cpu"))


def check_update(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> str | None:
    """Why an update that came from outside cannot be used: its first problem, or None where it can."""
    if not weights:
        return "the update is empty: at least one of the model's tensors was expected"
    for name, tensor in weights.items():
        expected = reference.get(name)
        if expected is None:
            return f"the update holds {name!r}, which the model does not have.{nearest_hint(name, reference)}"
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            return (
                f"{name!r} is {_described(tensor)} in the update, {_described(expected)} in the model; "
                "both must be the same"
            )
    for name, mask in masks.items():
        if name not in weights:
            return f"there is a mask for {name!r}, which the update does not hold"
        if mask.shape != weights[name].shape or mask.dtype != torch.bool:
            return f"the mask of {name!r} is {_described(mask)}; {_described(weights[name], torch.bool)} is needed"
    return None


def _described(tensor: Tensor, dtype: torch.dtype | None = None) -> str:
    return f"{str(dtype or tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with nan or infinity, or None.

    A sum is finite only where all its terms are, and is the fastest reduction. (Only if it is not, which large numbers
    may do as well, each element is looked at.)
    """
    for name, tensor in weights.items():
        numbers = tensor.dtype.is_floating_point or tensor.dtype.is_complex
        if numbers and not math.isfinite(abs(tensor.sum().item())) and not bool(torch.isfinite(tensor).all()):
            return name
    return None
