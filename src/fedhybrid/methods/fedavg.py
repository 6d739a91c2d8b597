"""FedAvg: clients train locally for some epochs, the server averages their models.

Source: B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629
Follows: Algorithm 1 (FederatedAveraging); models weigh by the samples n_k of their clients, over the n of the round.
Differs: who takes part is a policy's choice, not always uniform; a round's updates are those that came back (a failed
client is left out of the mean); the last batch of an epoch is filled up or dropped, because a step has one batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.protocols import Optimizer

__all__ = ["FedAvg"]


@final
@dataclass(frozen=True, kw_only=True)
class FedAvg(AbstractAveraging):
    """Federated averaging of the unplanned step: devices that cannot hold PyTorch's own step cannot take part."""

    @property
    def plans(self) -> bool:
        """No plans: each client runs the whole step as it is."""
        return False

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base
