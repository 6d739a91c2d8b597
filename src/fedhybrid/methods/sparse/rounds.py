"""One round between a server that owns the masks and its clients: what goes out, what comes back, who knows what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedhybrid.methods.sparse.ledger import MUTATION, STAYS, SURVIVORS, compact_weights
from fedhybrid.models.sparse import PATTERN_IDS, PLACES, VALUES, Layout
from fedhybrid.records import Update
from fedhybrid.tree import Tensors

__all__ = ["SAMPLES_KEPT", "SLOPES", "ClientFacts", "noted", "spread_out", "task_weights", "travelling"]

SLOPES = "slopes"  # |g| of a sparse layer's values, as a client sends it
SAMPLES_KEPT = "samples_kept"  # what a client keeps, and says how many they are
_CLIENTS, _FACTS = "sparse.clients", "sparse.facts"


class ClientFacts(NamedTuple):
    """What a server knows of one client.

    Attributes:
        whole_mask: Number of the mutation that made the whole mask that it has; -1 for none.
        found_mask: The same of the smaller mask, without what was grown.
        samples_kept: How many samples it trains on; -1 for all.
    """

    whole_mask: int = -1
    found_mask: int = -1
    samples_kept: int = -1

    @classmethod
    def all_of(cls, ledger: Mapping[str, Tensor]) -> dict[int, ClientFacts]:
        """By client, in ascending order, those of whom there is anything."""
        if _CLIENTS not in ledger:
            return {}
        rows = zip(ledger[_CLIENTS].tolist(), ledger[_FACTS].tolist(), strict=True)
        return {client: cls(*facts) for client, facts in rows}

    @classmethod
    def as_ledger(cls, facts: Mapping[int, ClientFacts]) -> Tensors:
        """For the server to keep."""
        clients = sorted(facts)
        return {_CLIENTS: torch.tensor(clients), _FACTS: torch.tensor([facts[client] for client in clients])}


def task_weights(
    weights: Mapping[str, Tensor],
    ledger: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    *,
    whole: bool,
    asks: bool,
) -> Tensors:
    """A task's weights: the compact model, and what tells a client of the last mutation.

    Args:
        weights: The dense model.
        ledger: The server's.
        layouts: Of the sparse layers.
        whole: The whole masks, else only what the last mutation found.
        asks: Whether |g| is asked for: its form is given then, which does not travel.
    """
    given = compact_weights(weights, ledger, layouts, whole=whole)
    for path in layouts:
        if whole and f"{path}.{STAYS}" in ledger:
            given[f"{path}.{STAYS}"] = ledger[f"{path}.{STAYS}"]
            given[MUTATION] = ledger[MUTATION]
        if asks:
            given[f"{path}.{SLOPES}"] = torch.zeros_like(given[f"{path}.{VALUES}"])
    return given


def travelling(weights: Mapping[str, Tensor], has: int, ledger: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of a task's weights that are sent to a client: its mask only as far as it does not know it.

    Args:
        weights: The task's.
        has: Number of the mutation that made the mask that the client has; -1 for none.
        ledger: The server's.
    """
    current = int(ledger[MUTATION][1])
    told_changes = has == current - 1 and MUTATION in weights and has >= 0
    left_out = {SLOPES}
    if has == current or told_changes:
        left_out |= {PLACES, PATTERN_IDS}
    if not told_changes:
        left_out.add(STAYS)
    return tuple(
        name for name in weights if name.rpartition(".")[2] not in left_out and (told_changes or name != MUTATION)
    )


def _trains_found(update: Update, ledger: Mapping[str, Tensor], path: str) -> bool:
    """Whether the client trained what the last prune found, without what was grown."""
    values = update.weights.get(f"{path}.{VALUES}")
    return values is not None and len(values) != len(ledger[f"{path}.{SURVIVORS}"])


def spread_out(update: Update, ledger: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> tuple[Tensors, Tensors]:
    """What an update trained, tensors and masks, in the form of the whole masks.

    The server's own tensors (masks, mutations) are left out, and |g| of a layer whose values the update does not hold.
    """
    tensors, masks = dict(update.weights), dict(update.masks)
    for path in layouts:
        for name in (PLACES, PATTERN_IDS, STAYS, *(() if f"{path}.{VALUES}" in tensors else (SLOPES,))):
            tensors.pop(f"{path}.{name}", None)
    tensors.pop(MUTATION, None)
    for path in layouts:
        if _trains_found(update, ledger, path):
            found = ledger[f"{path}.{SURVIVORS}"]
            for name in (f"{path}.{VALUES}", f"{path}.{SLOPES}"):
                if name in tensors:
                    part = tensors[name]
                    whole = part.new_zeros(len(found), *part.shape[1:])
                    whole[found] = part
                    mask = found.view(-1, *(1,) * (part.dim() - 1)).expand(whole.shape).clone()
                    if name in masks:
                        mask[found] = masks[name]
                    tensors[name], masks[name] = whole, mask
    return tensors, masks


def noted(
    ledger: Tensors, updates: Sequence[Update], layouts: Mapping[str, Layout], *, leaves_samples_out: bool
) -> Tensors:
    """The ledger with what these updates say of their clients: which mask they have, how many samples they keep.

    Args:
        ledger: The server's.
        updates: As they came.
        layouts: Of the sparse layers.
        leaves_samples_out: Whether clients may train on fewer samples than they hold; else nothing is noted of that.
    """
    facts = ClientFacts.all_of(ledger)
    before = dict(facts)
    for update in updates:
        fact = facts.get(update.client, ClientFacts())
        if any(f"{path}.{VALUES}" in update.weights for path in layouts):
            current = int(ledger[MUTATION][1])
            found = any(_trains_found(update, ledger, path) for path in layouts)
            fact = fact._replace(found_mask=current) if found else fact._replace(whole_mask=current)
        told = update.metrics.get(SAMPLES_KEPT, math.nan)
        if leaves_samples_out and not math.isnan(told):
            fact = fact._replace(samples_kept=int(min(max(told, 0), update.num_samples)))
        if fact != ClientFacts():
            facts[update.client] = fact
    return ledger if facts == before else {**ledger, **ClientFacts.as_ledger(facts)}
