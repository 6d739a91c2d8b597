"""From what arrived and what the coded rows say to one step of the server, without bias where arrivals are chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhybrid.methods.coded.rows import coded_gradient
from fedhybrid.protocols import RoundPlan
from fedhybrid.records import Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = [
    "ARRIVAL",
    "LEAST_ARRIVAL",
    "SHARE",
    "Measured",
    "ServerStep",
    "arrivals_variance",
    "chance",
    "mixed",
    "shares",
]

ARRIVAL, SHARE = "arrival", "share"  # options of tasks, which come back as metrics of their updates
LEAST_ARRIVAL = 0.01  # a smaller probability counts as this one: no update is multiplied by more than a hundred


_VARIANCES = "coded/variances"  # in `ServerState.extra`


def chance(update: Update) -> float:
    """Probability that this update comes, as its factor takes it: 0.01 at least.

    An update that was said to be impossible and is here counts as certain: that probability was wrong, and nothing
    better is known.
    """
    said = update.metrics[ARRIVAL]
    return max(said, LEAST_ARRIVAL) if said > 0 else 1.0


def shares(plan: RoundPlan) -> dict[int, float]:
    """Of each client of the cohort its part of the cohort's samples."""
    held = {client: plan.costs.num_samples(client) for client in plan.cohort}
    total = max(sum(held.values()), 1)
    return {client: count / total for client, count in held.items()}


def mixed(
    weight: Tensor, changes: Sequence[Tensor], factors: Sequence[float], alone: Tensor | None, mix: float
) -> Tensor:
    """W + mix * sum of factor * change + (1 - mix) * the server's own change; summed in float64.

    Args:
        weight: W.
        changes: Of the clients that came.
        factors: Of each: its share of the samples over its probability of coming.
        alone: The server's own; None leaves the mix out.
        mix: lambda.
    """
    joint = weight.double()
    outside = mix if alone is not None else 1.0
    for change, factor in zip(changes, factors, strict=True):
        joint = joint + outside * factor * change.double()
    if alone is not None:
        joint = joint + (1.0 - mix) * alone.double()
    return joint.to(weight.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerStep:
    """What the server does with its coded rows in one round.

    Attributes:
        x, y: Coded rows.
        noise: S2 of the make-up term.
        samples: l, of all clients together.
        lr: eta.
        steps: E.
        ridge: Of the objective, added to the mean squared error.
        batch: Rows of a step; 0: all.
        seed: Decides, with the server's version, which.
    """

    x: Tensor
    y: Tensor
    noise: float
    samples: int
    lr: float
    steps: int
    ridge: float = 0.0
    batch: int = 0
    seed: int = 0

    @property
    def rows(self) -> int:
        """Looked at in one step."""
        return min(self.batch, len(self.x)) if self.batch else len(self.x)

    def gradient(self, weight: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Of the mean over all samples, (features, classes)."""
        x, y = (self.x, self.y) if chosen is None else (self.x[chosen], self.y[chosen])
        return coded_gradient(x, y, weight, noise=self.noise) / self.samples + self.ridge * weight

    def change(self, weight: Tensor, version: int) -> Tensor:
        """What E steps from `weight` change; the rows of each are drawn by seed and version of the server."""
        drawn = derive_seed(self.seed, purpose="coded rows", round_index=version)
        generator = torch.Generator().manual_seed(drawn)
        now = weight.clone()
        for _ in range(self.steps):
            chosen = None
            if self.rows < len(self.x):
                chosen = torch.randperm(len(self.x), generator=generator)[: self.rows]
            now = now - self.lr * self.gradient(now, chosen)
        return now - weight


def arrivals_variance(updates: Sequence[Update], changes: Sequence[Tensor]) -> float:
    """Variance of the clients' part of the sum over who comes, estimated from those who came.

    Somebody's part is (share / p) * change with probability p, so its variance is share^2 * |change|^2 * (1 - p) / p;
    it is seen with probability p.
    """
    found = 0.0
    for update, change in zip(updates, changes, strict=True):
        likely = chance(update)
        found += (update.metrics[SHARE] / likely) ** 2 * (1 - likely) * float(change.double().square().sum())
    return found


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Variances of the two parts of the sum, added up over rounds.

    The lambda of a round is that of earlier rounds' variances. With this round's own it would depend on who has come,
    and a sum whose weights depend on its terms is biased.

    Attributes:
        clients: Of what clients say, over who comes.
        server: Of what the coded rows say; infinite where it cannot be known.
    """

    clients: float
    server: float

    @property
    def mix(self) -> float:
        """The lambda of the least variance of two independent estimates; 1 where neither varies, or the server's is
        not known.

        >>> Measured(clients=3.0, server=1.0).mix
        0.25
        """
        total = self.clients + self.server
        return self.server / total if 0 < total < math.inf else 1.0

    def after(self, before: Measured | None) -> Measured:
        """Added to those of the rounds before."""
        if before is None:
            return self
        return Measured(clients=self.clients + before.clients, server=self.server + before.server)

    def to_extra(self) -> Tensors:
        """As named tensors."""
        return {_VARIANCES: torch.tensor([self.clients, self.server], dtype=torch.float64)}

    @classmethod
    def of_extra(cls, extra: Mapping[str, Tensor]) -> Measured | None:
        """What `to_extra` gave; None before anything is measured."""
        found = extra.get(_VARIANCES)
        return None if found is None else cls(clients=float(found[0]), server=float(found[1]))
