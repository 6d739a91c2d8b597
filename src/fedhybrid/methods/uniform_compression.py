"""Uniform compression: who cannot hold the step keeps what the backward pass needs in 8 or 4 bits, all tensors alike.

Source: the quantisation of J. Chen, L. Zheng, Z. Yao, D. Wang, I. Stoica, M. W. Mahoney, J. E. Gonzalez, "ActNN:
Reducing Training Memory Footprint via 2-Bit Activation Compressed Training", ICML 2021,
https://arxiv.org/abs/2104.14129
Follows: the forward pass is exact; what the backward pass needs waits as integers, each group of values with a range of
its own (`codecs/affine.py`).
Differs: one number of bits for all tensors, without ActNN's mixed precision, and rounding to the nearest number; only
clients whose memory does not hold the step as PyTorch runs it pack anything, and they pack all that they may, by
however little they are short; who does not hold the packed step either is left out. The rest is FedAvg, with FedAvg's
mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.protocols import Optimizer

__all__ = ["UniformCompression"]

_BITS = (8, 4)


@final
@dataclass(frozen=True, kw_only=True)
class UniformCompression(AbstractAveraging):
    """Federated averaging in which clients that cannot hold the step pack all of it in so many bits a value.

    Attributes:
        bits: 8 or 4.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise ConfigError(f"bits must be 8 or 4, got {self.bits}")

    @property
    def plans(self) -> bool:
        """Who needs one gets the one plan there is."""
        return True

    @property
    def fallback(self) -> str | None:
        """All eligible tensors packed."""
        return f"affine-{self.bits}"

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base
