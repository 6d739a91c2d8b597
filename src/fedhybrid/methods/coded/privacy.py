"""What a client's coded rows give away of its samples, in bits.

The account is mutual information between one entry of the client's features and everything that the client sends,
where all its other entries and even the projection are known: then the rows are as many looks at that entry through
Gaussian noise, and no distribution of the entry tells more than a Gaussian of the same power. The bound below follows
with Jensen's inequality over the projection; RECONSTRUCTED, as the paper's is not public. Rows are sent once, so it
does not grow with rounds. It says nothing of the targets, which are sent without noise, nor of the updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedhybrid.methods.coded.rows import CodedSet

__all__ = ["Exposure", "exposure_bits", "ledger", "sigma_for"]


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """One client's entry in the ledger.

    Attributes:
        client: Its number.
        sigma: Standard deviation of its noise.
        largest: Largest magnitude among its features.
        bits: What an entry of its features gives away at most; infinity without noise.
    """

    client: int
    sigma: float
    largest: float
    bits: float


def exposure_bits(sigma: float, *, rows: int, largest: float) -> float:
    """At most so many bits: 0.5 * log2(1 + rows * largest^2 / sigma^2).

    >>> exposure_bits(1.0, rows=3, largest=1.0)
    1.0
    """
    return 0.5 * math.log2(1.0 + rows * (largest / sigma) ** 2) if sigma > 0 else math.inf


def sigma_for(bits: float, *, rows: int, largest: float) -> float:
    """The noise whose bound is so many bits, above 0; the inverse of `exposure_bits`."""
    return largest * math.sqrt(rows / math.expm1(2.0 * bits * math.log(2.0)))


def ledger(extra: Mapping[str, Tensor]) -> list[Exposure]:
    """Every client's entry, from what the server keeps (`ServerState.extra`); empty where nobody has sent rows."""
    held = CodedSet.of_extra(extra)
    if held is None:
        return []
    return [
        Exposure(
            client=client, sigma=sigma, largest=largest, bits=exposure_bits(sigma, rows=len(held.x), largest=largest)
        )
        for client, sigma, largest in zip(
            held.clients.tolist(), held.sigma.tolist(), held.largest.tolist(), strict=True
        )
    ]
