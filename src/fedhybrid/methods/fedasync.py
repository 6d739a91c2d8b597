"""FedAsync: every update is mixed into the global model as it comes, the less the staler it is.

Source: C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization", OPT workshop 2020,
https://arxiv.org/abs/1903.03934
Follows: Algorithm 1, x_t = (1 - a_t) x_(t-1) + a_t x_new with a_t = mixing * s(t - tau), its three functions s
(constant, polynomial, hinge), and its regularised local objective with weight `mu` (the paper's rho; 0 leaves it out).
Differs: an update that nothing overtook has staleness 0 and weight `mixing` here; in the paper's count t - tau is 1 for
it. The paper's server asks clients at random intervals; here the schedule keeps so many at work (`[schedule]`).
Several updates of one aggregation (`schedule.buffer` above 1) are mixed in one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedhybrid.errors import ConfigError
from fedhybrid.executor import Proximal
from fedhybrid.methods.averaging import AbstractAsynchronous
from fedhybrid.methods.local import train_locally
from fedhybrid.protocols import ClientRuntime, Optimizer, ServerState
from fedhybrid.records import ClientTask, Update
from fedhybrid.updates import average_present

__all__ = ["FedAsync", "staleness_weight"]

_KINDS = ("constant", "polynomial", "hinge")


def staleness_weight(staleness: int, kind: str, *, exponent: float, grace: int) -> float:
    """The paper's s: 1 for a fresh update, less for a stale one.

    Args:
        staleness: Aggregations since the client received its model.
        kind: "constant"; "polynomial", (staleness + 1)^-exponent; "hinge", 1 up to `grace`, then
            1 / (exponent * (staleness - grace) + 1).
        exponent: The paper's a.
        grace: The paper's b.

    >>> staleness_weight(3, "polynomial", exponent=0.5, grace=0)
    0.5
    """
    if kind == "constant" or (kind == "hinge" and staleness <= grace):
        return 1.0
    if kind == "hinge":
        return 1.0 / (exponent * (staleness - grace) + 1.0)
    return float((staleness + 1) ** -exponent)


@final
@dataclass(frozen=True, kw_only=True)
class FedAsync(AbstractAsynchronous):
    """Mixes each update into the global model by its staleness; runs the unplanned step unless plans are switched on.

    Attributes:
        mixing: Weight of a fresh update, above 0 and at most 1.
        staleness: "constant", "polynomial" or "hinge".
        exponent: See `staleness_weight`.
        grace: See `staleness_weight`; for "hinge".
        mu: Strength of the pull towards the model that the client received, at least 0.
    """

    mixing: float = 0.6
    staleness: str = "polynomial"
    exponent: float = 0.5
    grace: int = 4
    mu: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.mixing <= 1:
            problems.append(f"mixing must be above 0 and at most 1, got {self.mixing}")
        if self.staleness not in _KINDS:
            problems.append(f"staleness must be one of {', '.join(_KINDS)}, got {self.staleness!r}")
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            problems.append(f"exponent must be at least 0, got {self.exponent}")
        if self.grace < 0:
            problems.append(f"grace must be at least 0, got {self.grace}")
        if not (math.isfinite(self.mu) and self.mu >= 0):
            problems.append(f"mu must be at least 0, got {self.mu}")
        if problems:
            raise ConfigError(problems)

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer, on the regularised objective where there is a pull."""
        return Proximal(base=base, mu=self.mu) if self.mu else base

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local epochs of ordinary training."""
        return train_locally(task, client)

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """The global model moved towards each update; buffers like parameters."""
        weights = server.weights
        for update in updates:
            weight = self.mixing * staleness_weight(
                server.version - update.round_index, self.staleness, exponent=self.exponent, grace=self.grace
            )
            parts = [{name: weights[name] for name in update.weights}, update.weights]
            weights = average_present(weights, parts, [1.0 - weight, weight], [update.masks, update.masks])
        return ServerState(weights=weights, extra=server.extra)
