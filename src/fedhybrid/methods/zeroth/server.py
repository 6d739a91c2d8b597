"""The server of training without gradients: scalars become a gradient and a step, and whoever was away can follow.

All of it is named tensors (`ServerState.extra`), in names that begin with "zo.".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedhybrid.executor import SGD, Adam
from fedhybrid.methods.zeroth.masks import masked_names
from fedhybrid.methods.zeroth.noise import direction_seed, estimated_gradient, mask_name
from fedhybrid.models.perturbed import DRAW_ORDER, draw_names
from fedhybrid.records import Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = [
    "SCALARS",
    "SEED",
    "Stepper",
    "applied_clip",
    "begun",
    "copy_bytes",
    "joined",
    "largest_entry",
    "mask_bytes",
    "masks_of",
    "round_seed",
]

SCALARS = "zo.scalars"  # what clients upload: float32 (batches, k)
SEED = "zo.seed"
_COUNT, _LOG, _SIZES = "zo.count", "zo.log", "zo.log_sizes"
_CLIENTS, _VERSIONS = "zo.clients", "zo.versions"
_RAW = "zo.raw."


def begun(weights: Tensors) -> Tensors:
    """What the server keeps at first: the seed of all that is random, from the initial weights' own randomness.

    So runs of different seeds that begin with the same pretrained weights have the same directions; what differs is
    clients, cohorts and batches.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        digest.update(weights[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {SEED: torch.tensor(int.from_bytes(digest.digest(), "big") >> 1)}


def masks_of(weights: Mapping[str, Tensor]) -> Tensors:
    """The masks by the names of their weights."""
    return {name: weights[mask_name(name)] for name in masked_names(weights)}


def mask_bytes(weights: Mapping[str, Tensor]) -> int:
    """Of all masks, a bit for each entry."""
    return math.ceil(sum(mask.numel() for mask in masks_of(weights).values()) / 8)


def copy_bytes(weights: Mapping[str, Tensor], *, without: Collection[str] = (), per_weight: int = 1) -> int:
    """Of the model without its masks and what they leave out.

    Args:
        weights: Of the model.
        without: Names that do not count.
        per_weight: 1, and 1 for each tensor of state that the server's step has for each parameter.
    """
    masks, drawn = masks_of(weights), set(draw_names(weights))
    none = {DRAW_ORDER, *map(mask_name, masks), *without}
    return sum(
        (int(masks[name].sum()) if name in masks else tensor.numel())
        * tensor.element_size()
        * (per_weight if name in drawn else 1)
        for name, tensor in weights.items()
        if name not in none
    )


def joined(updates: Sequence[Update], directions: int) -> Tensor:
    """One table of scalars for the gradient of all clients, float32 (batches, k).

    Each client counts by its samples, and each of its batches alike; a direction's scalar is what it adds to the mean.
    """
    total = sum(update.num_samples for update in updates)
    table = torch.zeros(max(len(update.weights[SCALARS]) for update in updates), directions, dtype=torch.float64)
    for update in updates:
        scalars = update.weights[SCALARS].to(torch.float64)
        table[: len(scalars)] += scalars * (update.num_samples / total / len(scalars) / directions)
    return table.to(torch.float32)


def applied_clip(largest: float, clip: float) -> float:
    """By what a gradient whose largest entry is so large is multiplied; `clip` 0 is no limit."""
    return clip / largest if 0 < clip < largest else 1.0


def largest_entry(gradient: Iterator[tuple[str, Tensor]]) -> float:
    """The size of the largest entry of a gradient that comes tensor by tensor; none is held longer than needed."""
    top = 0.0
    while (made := next(gradient, None)) is not None:
        low, high = made[1].aminmax()
        top = max(top, -float(low), float(high))
        del made
    return top


@final
@dataclass(frozen=True, kw_only=True)
class Stepper:
    """One step at the server from a table of scalars; a device that follows by the log calls the same.

    To follow, it holds beside its model the state of the rule (in Adam two tensors for each parameter), the gradient
    and the noise of one parameter, and for each version that it missed it draws all directions of that round's table.
    Neither that memory nor that time is in the peaks and clocks of a run, which are of passes alone.

    Attributes:
        rule: What steps; its state is kept in `extra`.
        sigma: Length of the perturbation.
        clip: Largest entry of the gradient, which is scaled down as a whole; 0: no limit.
        ema: Share of the old average in that of the weights, which is what is tested; 0: the weights themselves are.
    """

    rule: Adam | SGD
    sigma: float
    clip: float
    ema: float

    def current(self, weights: Tensors, extra: Mapping[str, Tensor]) -> Tensors:
        """The weights that clients start from."""
        return {name: extra.get(_RAW + name, tensor) for name, tensor in weights.items()}

    def gradient(self, weights: Tensors, table: Tensor, *, seed: int, version: int) -> Tensors:
        """The clipped gradient that a table of scalars makes up at a version, by the names of parameters."""
        seeds = [
            direction_seed(round_seed(seed, version), batch=batch, direction=direction)
            for batch in range(table.shape[0])
            for direction in range(table.shape[1])
        ]
        names, masks = draw_names(weights), masks_of(weights)
        gradient = dict(estimated_gradient(table.flatten(), seeds, names, weights, masks, sigma=self.sigma))
        factor = applied_clip(largest_entry(iter(gradient.items())), self.clip)
        return {name: g.mul_(factor) for name, g in gradient.items()}

    def step(self, weights: Tensors, extra: Tensors, table: Tensor, *, version: int) -> tuple[Tensors, Tensors]:
        """Weights and extra after the step from this version to the next; the table is logged."""
        extra, current = dict(extra), self.current(weights, extra)
        gradient = self.gradient(weights, table, seed=int(extra[SEED]), version=version)
        count = int(extra.get(_COUNT, torch.tensor(0))) + 1
        after = dict(weights)
        for name, grad in gradient.items():
            param = current[name].detach().clone()
            state = {
                key: extra[f"zo.{key}.{name}"].clone() if count > 1 else tensor
                for key, tensor in self.rule.init_state(param).items()
            }
            self.rule.update(name, param, grad, state, step=count, lr=self.rule.lr, owned=True)
            extra |= {f"zo.{key}.{name}": tensor for key, tensor in state.items()}
            if self.ema:
                extra[_RAW + name] = param
                after[name] = torch.lerp(param, weights[name], self.ema)
            else:
                after[name] = param
        extra[_COUNT] = torch.tensor(count)  # before the log is cut: a whole copy has the rule's state from now on
        return after, extra | self._logged(weights, extra, table)

    def _logged(self, weights: Tensors, extra: Mapping[str, Tensor], table: Tensor) -> Tensors:
        """The log of tables, no longer than what a whole copy takes: nobody is ever sent more."""
        log = torch.cat([extra.get(_LOG, torch.zeros(0)), table.flatten()])
        sizes = [*extra.get(_SIZES, torch.zeros(0, dtype=torch.int64)).tolist(), table.numel()]
        while sizes and sum(sizes) * log.element_size() > self.whole_bytes(weights, extra):
            sizes.pop(0)
        return {_LOG: log[len(log) - sum(sizes) :].clone(), _SIZES: torch.tensor(sizes, dtype=torch.int64)}

    def whole_bytes(self, weights: Tensors, extra: Mapping[str, Tensor]) -> int:
        """Of all that a device needs to go on by itself from now: the weights that count, and the rule's state."""
        return copy_bytes(weights, per_weight=1 + (len(self.rule.state_names) if _COUNT in extra else 0))

    def download_bytes(self, weights: Tensors, extra: Mapping[str, Tensor], client: int, *, version: int) -> int:
        """What a client must be sent to have the weights of this version.

        A new one: masks and a whole copy. Whoever has had a version: the tables since then, or a copy where that is
        smaller or the log does not reach back so far.
        """
        whole = self.whole_bytes(weights, extra)
        has = _versions(extra).get(client)
        if has is None:
            return whole + mask_bytes(weights)
        sizes = extra.get(_SIZES, torch.zeros(0, dtype=torch.int64)).tolist()
        missed = version - has
        if missed > len(sizes):
            return whole
        return int(min(whole, sum(sizes[len(sizes) - missed :]) * torch.float32.itemsize))

    def seen(self, extra: Tensors, clients: Sequence[int], *, version: int) -> Tensors:
        """Extra with a note that these clients have this version."""
        known = dict(sorted({**_versions(extra), **dict.fromkeys(clients, version)}.items()))
        return extra | {
            _CLIENTS: torch.tensor(list(known), dtype=torch.int64),
            _VERSIONS: torch.tensor(list(known.values()), dtype=torch.int64),
        }


def _versions(extra: Mapping[str, Tensor]) -> dict[int, int]:
    """By client, the last version that it has had."""
    if _CLIENTS not in extra:
        return {}
    return dict(zip(extra[_CLIENTS].tolist(), extra[_VERSIONS].tolist(), strict=True))


def round_seed(seed: int, version: int) -> int:
    """The seed of all directions of a round."""
    return derive_seed(seed, purpose="directions", round_index=version)
