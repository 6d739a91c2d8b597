"""ElasticTrainer in FL: each client trains the tensors of the whole network that are worth most in a time.

Source: K. Huang, B. Yang, W. Gao, "ElasticTrainer: Speeding Up On-Device Training with Runtime Elastic Tensor
Selection", MobiSys 2023, https://github.com/pittisl/ElasticTrainer; in a federation as the baseline of FedEL, NeurIPS
2025, https://arxiv.org/abs/2509.16902
Follows: importance -sum(g1 * dw) of each tensor from two steps on one batch, tensors chosen by dynamic programming so
that forward pass, gradients and updates keep to the time; each tensor is averaged over those who trained it.
Differs: tensors are chosen anew in every round, by the client's own importance alone. Where the forward pass takes all
of the time, the quickest tensor of the last part is trained (RECONSTRUCTED, as in FedEL). The time is FedEL's: a whole
step of the fastest kind of device. Memory counts too, as in `methods/fedel.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from fedhybrid.errors import ConfigError
from fedhybrid.methods.elastic import AbstractElastic, Rules
from fedhybrid.protocols import Optimizer

__all__ = ["ElasticTrainer"]


@final
@dataclass(frozen=True, kw_only=True)
class ElasticTrainer(AbstractElastic):
    """Each client trains the most important tensors of the whole network, in the time of the fastest one's whole step.

    Attributes:
        time_ratio: Time of a step, as a share of the whole step of the fastest kind of device; above 0.
    """

    time_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time_ratio) and self.time_ratio > 0):
            raise ConfigError(f"time_ratio must be a positive number, got {self.time_ratio}")

    @property
    def rules(self) -> Rules:
        """No window, the client's own importance alone."""
        return Rules(
            window=False,
            contiguous=False,
            beta=1.0,
            time_ratio=self.time_ratio,
            whole_probe=False,
            overrun=True,
        )

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base
