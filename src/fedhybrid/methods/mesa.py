"""Mesa: transformers train with 8-bit copies of what the backward pass needs, one range for each attention head.

Source: Z. Pan, P. Chen, H. He, J. Liu, J. Cai, B. Zhuang, "Mesa: A Memory-saving Training Framework for Transformers",
2021, https://arxiv.org/abs/2111.11124
Follows: the forward pass is exact; inputs of linear layers, GELU, layer norm and attention wait in 8 bits, in as many
groups as the attention has heads, with ranges that are running averages (0.9) of what was seen, rounded at random
without bias; statistics of norms stay exact.
Differs: a tensor that several operators save is stored once (RECONSTRUCTED); values beyond the running range are
clamped (the released code lets them wrap round); ranges start afresh with every task, so that no client sees another's;
attention is one operator here, so its scores are never stored at all. Federated training is not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.protocols import Optimizer

__all__ = ["Mesa"]


@final
@dataclass(frozen=True, kw_only=True)
class Mesa(AbstractAveraging):
    """Federated averaging in which every device keeps its activations in 8 bits, whatever its budget."""

    @property
    def plans(self) -> bool:
        """Every client gets the same plan: all packed."""
        return True

    @property
    def codec(self) -> str | None:
        """8 bits a value, a range a head."""
        return "mesa"

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base
