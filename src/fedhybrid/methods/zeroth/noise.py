"""Noise that a client and the server draw alike, from a seed alone, and the gradient that scalars make of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = [
    "MASK",
    "SCALES",
    "beside_gradient_bytes",
    "direction_seed",
    "drawn",
    "estimated_gradient",
    "mask_name",
    "moved",
    "seeded",
    "windows",
]

MASK = "kept"  # buffer of a layer that may be pruned: True where its weight stays
SCALES = "lane_scales"  # buffer of a model: how far each lane goes along the noise


def mask_name(weight: str) -> str:
    """The name of a weight's mask.

    >>> mask_name("stem.0.weight"), mask_name("weight")
    ('stem.0.kept', 'kept')
    """
    return f"{weight.removesuffix('weight')}{MASK}"


def direction_seed(seed: int, *, batch: int = 0, direction: int) -> int:
    """The seed of one direction of one batch."""
    return derive_seed(seed, purpose="direction", round_index=batch, client=direction)


def seeded(seed: int) -> torch.Generator:
    """A generator that draws what torch's own draws after `torch.manual_seed(seed)`."""
    return torch.Generator().manual_seed(seed)


def moved(layer: nn.Module, held: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """A layer's parameters with noise, for `fedhybrid.models.perturbed`: in each lane w + scale * z * mask.

    z is drawn from torch's own generator, once for all lanes, parameter by parameter. Buffers of the layer:
    `lane_scales` (lanes,), shared by the whole model, and `kept`, the mask of its weight, if it has one.
    """
    noise = {}
    for name in (name for name in held if name in layer._parameters):  # in the layer's order
        z = torch.randn(held[name].shape, dtype=held[name].dtype)
        noise[name] = z * held[MASK] if name == "weight" and MASK in held else z
    for scale in held[SCALES]:
        yield {name: held[name] + z * scale for name, z in noise.items()}


def drawn(seed: int, names: Sequence[str], weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The noise of one pass, tensor by tensor: what `moved` draws after this seed, without the masks.

    Args:
        seed: Of the direction.
        names: In the order of the pass (`fedhybrid.models.perturbed.draw_names`).
        weights: Only shapes and types are read.
    """
    generator = seeded(seed)
    for name in names:
        yield name, torch.randn(weights[name].shape, dtype=weights[name].dtype, generator=generator)


def windows(names: Sequence[str], weights: Mapping[str, Tensor], room_bytes: float) -> Iterator[tuple[str, ...]]:
    """Names in their order, cut into runs whose tensors take no more than that many bytes; at least one name each.

    >>> weights = {name: torch.zeros(size) for name, size in (("a", 2), ("b", 1), ("c", 5), ("d", 1))}
    >>> list(windows("abcd", weights, 16))
    [('a', 'b'), ('c',), ('d',)]
    """
    run: list[str] = []
    taken_bytes = 0
    for name in names:
        if run and taken_bytes + weights[name].nbytes > room_bytes:
            yield tuple(run)
            run, taken_bytes = [], 0
        run.append(name)
        taken_bytes += weights[name].nbytes
    if run:
        yield tuple(run)


def beside_gradient_bytes(names: Sequence[str], weights: Mapping[str, Tensor]) -> int:
    """What `estimated_gradient` holds beside the gradient itself: noise of one parameter, and its mask."""
    return max(weights[name].nbytes + weights[name].numel() for name in names)


def estimated_gradient(
    scalars: Tensor,
    seeds: Sequence[int],
    names: Sequence[str],
    weights: Mapping[str, Tensor],
    masks: Tensors,
    *,
    sigma: float,
    room_bytes: float = math.inf,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The gradient that the losses' differences make up, tensor by tensor: the sum of scalars * z * mask / sigma.

    One direction after the other is drawn, by one generator and into one scratch tensor. Where the room is less than
    the whole gradient, it is made in runs of a few tensors, and each run draws all directions again up to its end:
    slower, but the same to the last bit.

    Args:
        scalars: Of each direction, (k,): the difference of the losses, halved where it is a central one, times the
            direction's share of the mean (1 / k of a plain one).
        seeds: Of each direction.
        names: In the order of a pass.
        weights: Only shapes and types are read.
        masks: By the names of weights; what has none is whole.
        sigma: Length of the perturbation.
        room_bytes: For the tensors of the gradient that exist at once, which the caller lets go of before it asks for
            those of the next run; a tensor larger than that is a run of its own. `beside_gradient_bytes` come on top.
        generator: What draws, as torch's own does in a client's passes; it is seeded anew. None: another one.

    Source: Stein's identity, as in H. Feng et al., "Does Federated Learning Really Need Backpropagation?" (BAFFLE),
    https://arxiv.org/abs/2301.12195
    """
    factors = (scalars.to(torch.float64) / sigma).tolist()
    order = {name: number for number, name in enumerate(names)}
    generator = torch.Generator() if generator is None else generator
    for run in windows(names, weights, room_bytes):
        gradient = {name: torch.zeros_like(weights[name]) for name in run}
        for factor, seed in zip(factors, seeds, strict=True):
            generator.manual_seed(seed)
            for name in names[: order[run[-1]] + 1]:
                z = torch.empty_like(weights[name]).normal_(generator=generator)
                if name in gradient:
                    gradient[name].add_(z, alpha=factor)
                del z  # before the next is made
        for name in run:
            if name in masks:
                gradient[name].masked_fill_(~masks[name], 0.0)  # a product would copy the mask as numbers
            yield name, gradient.pop(name)
