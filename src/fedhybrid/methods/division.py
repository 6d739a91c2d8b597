"""DIVISION: activations wait for the backward pass as a smooth part in 16 bits and the rest in 2.

Source: G. Wang, Z. Liu, Z. Jiang, N. Liu, N. Zou, X. Hu, "DIVISION: Memory Efficient Training via Dual Activation
Precision", ICML 2023, https://arxiv.org/abs/2208.04187
Follows: what convolutions and batch norms save is stored as block averages (8 x 8) in bfloat16 and a remainder in 2
bits, rounded at random without bias; what decides a ReLU's gradient is one exact bit an element; linear layers are left
alone; nothing about the model, the weights or the optimizer changes, so it goes with any aggregation (here FedAvg's).
Differs: a map that several operators save is stored once; blocks at the border of a map are averaged over what is
there (the released code drops them); pooling indices are narrow integers of the whole map, not of the window. Federated
training is not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.protocols import Optimizer

__all__ = ["Division"]


@final
@dataclass(frozen=True, kw_only=True)
class Division(AbstractAveraging):
    """Federated averaging in which every device packs every map that DIVISION packs, whatever its budget."""

    @property
    def plans(self) -> bool:
        """Every client gets the same plan: all packed."""
        return True

    @property
    def codec(self) -> str | None:
        """Dual precision, for the inputs of convolutions and batch norms."""
        return "division"

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base
