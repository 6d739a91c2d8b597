"""Masks: the largest units of a weight, those that survive a prune, and units grown at random.

Source: G. Yuan et al., MEST, NeurIPS 2021, https://arxiv.org/abs/2110.14032, section 3. Counts are exact: ties go
to the unit that comes first (RECONSTRUCTED). Growth needs no gradient and no dense tensor: it takes memory for as many
numbers as there are units in the mask.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedhybrid.models.sparse import PATTERNS, Layout

__all__ = [
    "Mask",
    "grown",
    "initial_mask",
    "packed_bits",
    "random_mask",
    "survivors",
    "unit_scores",
    "unpacked_bits",
]


class Mask(NamedTuple):
    """The units that a weight keeps.

    Attributes:
        places: Of `Layout.place_dtype`, in ascending order of their numbers (`Layout.numbers`).
        patterns: Numbers of their patterns, uint8; None where the scheme has none.
    """

    places: Tensor
    patterns: Tensor | None = None

    def only(self, which: Tensor) -> Mask:
        """The units for which `which` (bool, one for each) is True."""
        return Mask(self.places[which], None if self.patterns is None else self.patterns[which])


def unit_scores(importance: Tensor) -> Tensor:
    """The score of each unit, shape (units,): the L2 norm of its elements' importance.

    Args:
        importance: Not negative, of shape (units, elements of a unit, ...).
    """
    rows = importance.reshape(len(importance), -1)
    return rows[:, 0] if rows.shape[1] == 1 else rows.double().square().sum(1).sqrt()


def _largest(layout: Layout, scores: Tensor, kept: int) -> Tensor:
    """Which units have the largest scores: equally many in each group, ties to the first; bool, one for each score."""
    by_group = scores.reshape(layout.groups, -1)
    order = by_group.argsort(dim=1, descending=True, stable=True)[:, : kept // layout.groups]
    chosen = torch.zeros(by_group.shape, dtype=torch.bool)
    return chosen.scatter_(1, order, torch.ones_like(order, dtype=torch.bool)).reshape(-1)


def initial_mask(layout: Layout, weight: Tensor, sparsity: float) -> Mask:
    """The largest units of a dense weight; of each kernel the pattern with the largest L2 norm."""
    every = torch.arange(layout.units).to(layout.place_dtype)
    patterns = None
    if layout.has_patterns:
        squares = weight.reshape(-1, 9).double().square()
        retained = torch.stack([squares[:, list(pattern)].sum(1) for pattern in PATTERNS], dim=1)
        patterns = retained.argmax(dim=1).to(torch.uint8)
    scores = unit_scores(layout.gathered(weight, every, patterns).abs())
    return Mask(every, patterns).only(_largest(layout, scores, layout.kept(sparsity)))


def random_mask(layout: Layout, sparsity: float, seed: int) -> Mask:
    """Units chosen at random, equally many in each group."""
    none = Mask(
        torch.zeros(0, dtype=layout.place_dtype), torch.zeros(0, dtype=torch.uint8) if layout.has_patterns else None
    )
    return grown(layout, none, sparsity, seed)


def survivors(layout: Layout, scores: Tensor, sparsity: float) -> Tensor:
    """Which units of a mask stay when it is pruned to this sparsity; all where it is as sparse already.

    Args:
        layout: Of the weight.
        scores: Of the mask's units, in its order.
        sparsity: To prune to.

    Returns:
        Bool, one for each unit of the mask.
    """
    return _largest(layout, scores, min(layout.kept(sparsity), len(scores)))


def grown(layout: Layout, mask: Mask, sparsity: float, seed: int, *, barred: Tensor | None = None) -> Mask:
    """The mask with units added that are drawn uniformly at random among the others, up to this sparsity.

    The same mask and seed give the same units on every machine.

    Args:
        layout: Of the weight.
        mask: What stays.
        sparsity: To grow to; nothing happens where the mask is as dense already.
        seed: Of the draw.
        barred: Places of units that are not drawn, as long as there are others.
    """
    wanted = layout.kept(sparsity) // layout.groups
    run = layout.units // layout.groups
    generator = torch.Generator().manual_seed(seed)
    active = layout.numbers(mask.places).to(torch.int64)
    taken = active if barred is None else torch.cat([active, layout.numbers(barred)]).sort().values
    edges = torch.arange(layout.groups + 1) * run
    active_at, taken_at = torch.searchsorted(active, edges).tolist(), torch.searchsorted(taken, edges).tolist()
    new = []
    for group in range(layout.groups):
        there = active[active_at[group] : active_at[group + 1]]
        closed = taken[taken_at[group] : taken_at[group + 1]]
        count = wanted - len(there)
        if count <= 0:
            continue
        if run - len(closed) < count:
            closed = there
        closed = closed - group * run
        ranks = _distinct(run - len(closed), count, generator)
        # The free unit of rank r is r further on than the closed units before it are many.
        before = torch.searchsorted(closed - torch.arange(len(closed)), ranks, right=True)
        new.append(ranks + before + group * run)
    if not new:
        return mask
    added = torch.cat(new)
    places, order = torch.cat([active, added]).sort()
    patterns = None
    if mask.patterns is not None:
        drawn = torch.randint(len(PATTERNS), (len(added),), generator=generator).to(torch.uint8)
        patterns = torch.cat([mask.patterns, drawn])[order]
    return Mask(places.to(layout.place_dtype), patterns)


def _distinct(below: int, count: int, generator: torch.Generator) -> Tensor:
    """So many different whole numbers in [0, below), ascending, each set as likely; memory for `count` of them."""
    if 2 * count > below:  # few are left out: draw those
        left_out = torch.zeros(below, dtype=torch.bool)
        left_out[_distinct(below, below - count, generator)] = True
        return (~left_out).nonzero().squeeze(1)
    drawn = torch.zeros(0, dtype=torch.int64)
    while len(drawn) < count:
        drawn = torch.cat([drawn, torch.randint(below, (count,), generator=generator)])
        numbers, which = torch.unique(drawn, return_inverse=True)
        first = torch.full((len(numbers),), len(drawn)).scatter_reduce_(0, which, torch.arange(len(drawn)), "amin")
        drawn = drawn[first.sort().values][
            :count
        ]  # in the order of their first appearance, or small ones were likelier
    return drawn.sort().values


def packed_bits(which: Tensor) -> Tensor:
    """Booleans as bits, eight to a byte; uint8."""
    return torch.from_numpy(np.packbits(which.numpy(), bitorder="little"))


def unpacked_bits(packed: Tensor, count: int) -> Tensor:
    """The first `count` booleans of `packed_bits`."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count, bitorder="little").astype(bool))
