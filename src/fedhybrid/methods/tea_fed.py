"""TEA-Fed: idle devices ask for work, their models wait in a cache, and merges weigh them by staleness.

Source: C. Zhou, H. Tian, H. Zhang, J. Zhang, M. Dong, J. Jia, "TEA-fed: time-efficient asynchronous federated learning
for edge computing", Computing Frontiers 2021, https://doi.org/10.1145/3457388.3458655
Follows: devices apply for tasks (policy `first-come`), at most ceil(C N) at a time (`schedule.in_flight`); the server
merges when K = ceil(gamma N) models are cached (`schedule.buffer`).
Differs: only the abstract is public to us. RECONSTRUCTED: the merge (`teasq.merging`), its constants, and the proximal
local objective F_k(w) + (mu / 2) ||w - w_h||^2, w_h being the model that the client received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fedhybrid.methods.teasq import AbstractTea, merged
from fedhybrid.protocols import ServerState
from fedhybrid.records import Update

__all__ = ["TeaFed"]


@final
@dataclass(frozen=True, kw_only=True)
class TeaFed(AbstractTea):
    """Merges cached models by staleness and samples; runs the unplanned step unless plans are switched on.

    Attributes:
        mixing: alpha: how far a merge of fresh models moves the global one, above 0 and at most 1.
        exponent: a: how fast models lose weight with age, at least 0.
        mu: Strength of the pull towards the model that the client received, at least 0.
    """

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """The global model after a merge of the cache."""
        weights = merged(server, updates, mixing=self.mixing, exponent=self.exponent)
        return ServerState(weights=weights, extra=server.extra)
