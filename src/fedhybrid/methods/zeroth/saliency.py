"""How much each mask entry matters to the neural tangent kernel, as modules whose loss the mask decides.

Source: Y. Wang, D. Li, R. Sun, "NTK-SAP: Improving neural network pruning by aligning training dynamics", ICLR 2023,
https://arxiv.org/abs/2304.02840: the trace of the kernel by a finite difference,
J(m) = mean over inputs of |f(z; theta * m) - f(z; (theta + dtheta) * m)|^2 with dtheta ~ N(0, eps^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedhybrid.methods.zeroth.noise import MASK, SCALES, mask_name, seeded
from fedhybrid.tree import Tensors

__all__ = [
    "SHIFT",
    "distance_loss",
    "first_lane_loss",
    "noisy_masks",
    "rebuilt_saliency",
    "redraw",
    "shift_name",
    "shifted_mask",
    "shifted_masks",
]

SHIFT = "mask_shift"  # parameter of a layer, zero: what is added to its mask, and what gets the gradient of the mask


def shift_name(weight: str) -> str:
    """The name of what is added to a weight's mask."""
    return f"{weight.removesuffix('weight')}{SHIFT}"


def _both(weight: Tensor, factor: Tensor, noise: Tensor) -> Iterator[Mapping[str, Tensor]]:
    yield {"weight": weight * factor}
    yield {"weight": (weight + noise) * factor}


def noisy_masks(_: nn.Module, held: Mapping[str, Tensor], *, eps: float) -> Iterator[Mapping[str, Tensor]]:
    """Two lanes, of weights and of weights with noise, both under a mask that itself has noise where it is not zero.

    From torch's own generator first the mask's noise is drawn, then that of the weight.

    Args:
        held: Of a layer: weight, `kept`, and `lane_scales` (1,), the deviation of the mask's noise.
        eps: Deviation of the weight's.
    """
    weight = held["weight"]
    of_mask = torch.randn(weight.shape, dtype=weight.dtype)
    factor = held[MASK] * (1.0 + of_mask * held[SCALES])
    yield from _both(weight, factor, eps * torch.randn(weight.shape, dtype=weight.dtype))


def shifted_masks(_: nn.Module, held: Mapping[str, Tensor], *, eps: float) -> Iterator[Mapping[str, Tensor]]:
    """The same two lanes, under a mask to which the layer's `mask_shift` is added."""
    weight = held["weight"]
    factor = held[MASK] + held[SHIFT]
    yield from _both(weight, factor, eps * torch.randn(weight.shape, dtype=weight.dtype))


def shifted_mask(_: nn.Module, held: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """One lane, under a mask to which the layer's `mask_shift` is added."""
    yield {"weight": held["weight"] * (held[MASK] + held[SHIFT])}


def distance_loss(output: tuple[Tensor, Tensor, Tensor], _: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance of the two lanes' scores: its sum, and that of each sample, (1, rows)."""
    scores, _, there = output
    base, other = scores.chunk(2)
    distances = (other - base).flatten(1).square().sum(dim=1) * there
    return distances.sum(), distances[None]


def first_lane_loss(
    output: tuple[Tensor, Tensor, Tensor], labels: Tensor, *, loss_fn: Callable[..., Any]
) -> tuple[Tensor, Tensor]:
    """The loss of each lane's samples: the sum of the first lane's, and all of them, (lanes, rows)."""
    scores, rows, there = output
    labels = labels.index_select(0, rows)
    losses = torch.stack([loss_fn(lane, labels)[1] * there for lane in scores.chunk(len(scores) // len(rows))])
    return losses[0].sum(), losses


def redraw(tensors: Mapping[str, Tensor], weights: Sequence[str], seed: int) -> None:
    """Writes new weights into `tensors`, normal with variance 2 / fan-in, the same from the same seed.

    Source: K. He et al., "Delving Deep into Rectifiers", ICCV 2015, https://arxiv.org/abs/1502.01852
    """
    generator = seeded(seed)
    with torch.no_grad():
        for name in weights:
            tensor = tensors[name]
            tensor.normal_(0.0, math.sqrt(2.0 / tensor[0].numel()), generator=generator)


def rebuilt_saliency(
    scalars: Tensor, seeds: Sequence[int], names: Sequence[str], weights: Mapping[str, Tensor], *, sigma: float
) -> Tensors:
    """The saliency of every mask entry that a client's scalars make up, by the names of weights, in float32.

    Args:
        scalars: Half of J(m + u) - J(m - u) for each direction u = sigma * z, (q,).
        seeds: Of each direction.
        names: Of the weights under masks, in the order of a pass.
        weights: Shapes, types and masks.
        sigma: Deviation of the mask's noise.
    """
    found = {name: torch.zeros(weights[name].shape) for name in names}
    for scalar, seed in zip(scalars.tolist(), seeds, strict=True):
        generator = seeded(seed)
        for name in names:
            shape, dtype = weights[name].shape, weights[name].dtype
            z = torch.randn(shape, dtype=dtype, generator=generator)
            found[name].add_(z, alpha=scalar / (sigma * len(seeds)))
            torch.randn(shape, dtype=dtype, generator=generator)  # what a pass draws for the weight
    return {name: tensor * weights[mask_name(name)] for name, tensor in found.items()}
