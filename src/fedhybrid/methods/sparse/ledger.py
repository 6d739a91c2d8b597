"""What a server that owns the masks of a model keeps between rounds, and what of it travels.

All of it is named tensors (`ServerState.extra`). Names there, for a layer at `path`: `path.places` and `path.patterns`
are its mask; `path.survivors` says which of its units the last mutation found (the others it grew); `path.stays` has
one bit for each unit of the mask before, set where it survived. A client that has the mask before makes the new one
from those bits and from the seed of the growth, by the very function that the server called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from fedhybrid.methods.sparse.masks import (
    Mask,
    grown,
    initial_mask,
    packed_bits,
    random_mask,
    survivors,
    unit_scores,
    unpacked_bits,
)
from fedhybrid.methods.sparse.schedule import Phase
from fedhybrid.models.sparse import MARK, PATTERN_IDS, PLACES, VALUES, Layout, marked_paths
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = [
    "MUTATION",
    "STAYS",
    "SURVIVORS",
    "compact_weights",
    "dense_weights",
    "layouts_of",
    "mask_of",
    "mutated",
    "received_masks",
    "started",
]

SURVIVORS, STAYS = "survivors", "stays"
MUTATION = "sparse.mutation"  # int64: the seed of all masks, and how many mutations there have been


def layouts_of(weights: Mapping[str, Tensor], scheme: str) -> dict[str, Layout]:
    """By path, the layout of each layer that `fedhybrid.models.sparse.marked` has marked."""
    return {path: Layout(scheme=scheme, shape=tuple(weights[f"{path}.weight"].shape)) for path in marked_paths(weights)}


def mask_of(held: Mapping[str, Tensor], path: str) -> Mask:
    """The mask of a layer, from a server's `extra`, a task's weights or a compact model's tensors."""
    return Mask(held[f"{path}.{PLACES}"], held.get(f"{path}.{PATTERN_IDS}"))


def _as_held(path: str, mask: Mask) -> Tensors:
    held = {f"{path}.{PLACES}": mask.places}
    return held if mask.patterns is None else held | {f"{path}.{PATTERN_IDS}": mask.patterns}


def started(
    weights: Tensors, layouts: Mapping[str, Layout], *, sparsity: float, phase: Phase, at_random: bool
) -> tuple[Tensors, Tensors]:
    """The global model and the ledger before the first round: initial masks, and the mutation that is due at once.

    Everything random derives from the initial weights, which themselves derive from the run's seed.

    Args:
        weights: The dense model.
        layouts: Of its sparse layers.
        sparsity: Of the initial masks.
        phase: The first.
        at_random: Units are chosen at random, not by size.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in layouts:
        digest.update(weights[f"{path}.weight"].contiguous().view(torch.uint8).numpy().tobytes())
    seed = int.from_bytes(digest.digest(), "big") >> 1
    ledger: Tensors = {MUTATION: torch.tensor([seed, 0])}
    masked = dict(weights)
    for path, layout in layouts.items():
        weight = weights[f"{path}.weight"]
        if at_random:
            mask = random_mask(layout, sparsity, _seed_of(ledger, path))
        else:
            mask = initial_mask(layout, weight, sparsity)
        masked[f"{path}.weight"] = layout.scattered(layout.gathered(weight, *mask), *mask)
        ledger |= _as_held(path, mask)
        ledger[f"{path}.{SURVIVORS}"] = torch.ones(len(mask.places), dtype=torch.bool)
    if phase.lower == phase.upper:
        return masked, ledger
    return mutated(masked, ledger, layouts, phase)


def mutated(
    weights: Tensors,
    ledger: Tensors,
    layouts: Mapping[str, Layout],
    phase: Phase,
    *,
    slopes: Mapping[str, Tensor] | None = None,
    gradient_weight: float = 0.0,
    bar_just_pruned: bool = False,
) -> tuple[Tensors, Tensors]:
    """The global model and the ledger after a mutation: the least important units pruned, others grown with value 0.

    The importance of an element is |w| + `gradient_weight` |g|.

    Args:
        weights: The dense model, zero outside the masks.
        ledger: Before.
        layouts: Of the sparse layers.
        phase: Says how far to prune, and how far to grow.
        slopes: By path |g| of the mask's elements; none counts as 0.
        gradient_weight: The paper's lambda.
        bar_just_pruned: Whether what has been pruned may not be grown at once.
    """
    weights, ledger = dict(weights), dict(ledger)
    ledger[MUTATION] = ledger[MUTATION] + torch.tensor([0, 1])
    for path, layout in layouts.items():
        before = mask_of(ledger, path)
        values = layout.gathered(weights[f"{path}.weight"], *before)
        importance = values.abs()
        if slopes is not None and path in slopes:
            importance = importance + gradient_weight * slopes[path].abs()
        stays = survivors(layout, unit_scores(importance), phase.lower)
        seed = _seed_of(ledger, path)
        after = _regrown(layout, before, stays, phase.upper, seed=seed, bar_just_pruned=bar_just_pruned)
        left = before.only(stays)
        weights[f"{path}.weight"] = layout.scattered(values[stays], *left)
        ledger |= _as_held(path, after)
        ledger[f"{path}.{SURVIVORS}"] = torch.isin(after.places, left.places)
        ledger[f"{path}.{STAYS}"] = packed_bits(stays)
    return weights, ledger


def _seed_of(held: Mapping[str, Tensor], path: str) -> int:
    seed, mutations = held[MUTATION].tolist()
    return derive_seed(seed, purpose=f"mask/{path}", round_index=mutations)


def _regrown(layout: Layout, before: Mask, stays: Tensor, sparsity: float, *, seed: int, bar_just_pruned: bool) -> Mask:
    """What both sides do to a mask in a mutation, given what stays."""
    barred = before.places[~stays] if bar_just_pruned else None
    return grown(layout, before.only(stays), sparsity, seed, barred=barred)


def compact_weights(
    weights: Mapping[str, Tensor], ledger: Mapping[str, Tensor], layouts: Mapping[str, Layout], *, whole: bool
) -> Tensors:
    """What a client trains: values and masks of the sparse layers, all else as it is.

    Args:
        weights: The dense model.
        ledger: The server's.
        layouts: Of the sparse layers.
        whole: The mask as it is, else only what the last mutation found.
    """
    hidden = {f"{path}.{name}" for path in layouts for name in ("weight", MARK)}
    compact = {name: tensor for name, tensor in weights.items() if name not in hidden}
    for path, layout in layouts.items():
        mask = mask_of(ledger, path)
        mask = mask if whole else mask.only(ledger[f"{path}.{SURVIVORS}"])
        compact[f"{path}.{VALUES}"] = layout.gathered(weights[f"{path}.weight"], *mask)
        compact |= _as_held(path, mask)
    return compact


def dense_weights(values: Mapping[str, Tensor], ledger: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Tensors:
    """The dense weights of the sparse layers by name, from the values of the server's masks."""
    return {
        f"{path}.weight": layout.scattered(values[f"{path}.{VALUES}"], *mask_of(ledger, path))
        for path, layout in layouts.items()
    }


def received_masks(
    given: Mapping[str, Tensor],
    sent: tuple[str, ...] | None,
    kept: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    sparsity: float,
    *,
    bar_just_pruned: bool,
) -> Tensors:
    """The masks of a task as its client knows them: what was sent, what it has kept, or that changed as it was told.

    Args:
        given: The task's weights.
        sent: Names of what travelled; None: all.
        kept: Masks that the client has kept.
        layouts: Of the sparse layers.
        sparsity: Of the task's masks.
        bar_just_pruned: As in `mutated`.
    """
    masks: Tensors = {}
    for path, layout in layouts.items():
        places, stays = f"{path}.{PLACES}", f"{path}.{STAYS}"
        if sent is None or places in sent or places not in kept:
            mask = mask_of(given, path)
        elif stays in sent:
            before = mask_of(kept, path)
            which = unpacked_bits(given[stays], len(before.places))
            seed = _seed_of(given, path)
            mask = _regrown(layout, before, which, sparsity, seed=seed, bar_just_pruned=bar_just_pruned)
        else:
            mask = mask_of(kept, path)
        masks |= _as_held(path, mask)
    return masks
