"""Gates: which side of one or two thresholds each element lies on, stored as bits and enforced after decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from torch import Tensor

from fedhybrid.codecs.bits import bit_rows, bit_table

__all__ = ["Gates", "exceeding"]


@final
@dataclass(frozen=True)
class Gates:
    """The gates of tensors of one type, as 32-bit floats: kernels compare with such.

    Attributes:
        low, high: Infinite where there is no gate.
        dtype: Of the elements.
        outside_low: The largest number of the type that is not above the low gate.
        inside_low: The smallest that is.
        inside_high: The largest number of the type that is below the high gate.
        outside_high: The smallest that is not.
    """

    low: float
    high: float
    dtype: torch.dtype
    outside_low: float
    inside_low: float
    inside_high: float
    outside_high: float

    @classmethod
    def of(cls, gates: tuple[float, float] | None, dtype: torch.dtype) -> Gates:
        """From a codec's option."""
        return _gates_of(gates or (-math.inf, math.inf), dtype)

    @property
    def planes(self) -> int:
        """Bits an element."""
        return math.isfinite(self.low) + math.isfinite(self.high)

    @property
    def thresholds(self) -> list[float]:
        """For each plane the number that elements with a set bit exceed."""
        below_high = _neighbour(self.high, torch.float32, strictly=True, up=False)
        return [t for t, gate in ((self.low, self.low), (below_high, self.high)) if math.isfinite(gate)]

    def enforce(self, span: Tensor, facts: tuple[float, float], planes: Sequence[Tensor]) -> None:
        """Moves each element of `span` to its side, in place.

        Args:
            span: Decoded 32-bit floats, shape (elements,).
            facts: Smallest and largest value that was encoded.
            planes: The bits of each finite gate, from the first element of the span on.
        """
        nothing_beyond = self.low <= facts[0] and facts[1] <= self.high
        scratch = torch.empty_like(span)
        bits = iter(planes)
        if nothing_beyond:  # then a side outside has one value, and one comparison a gate is enough
            span.clamp_(self.inside_low, self.inside_high)
        if math.isfinite(self.low):
            plane = next(bits)
            if not nothing_beyond:
                torch.maximum(span, _either(plane, -math.inf, self.inside_low, scratch), out=span)
            torch.minimum(span, _either(plane, self.outside_low, math.inf, scratch), out=span)
        if math.isfinite(self.high):
            plane = next(bits)
            if not nothing_beyond:
                torch.minimum(span, _either(plane, self.inside_high, math.inf, scratch), out=span)
            torch.maximum(span, _either(plane, -math.inf, self.outside_high, scratch), out=span)


@cache
def _gates_of(gates: tuple[float, float], dtype: torch.dtype) -> Gates:
    low, high = torch.tensor(gates, dtype=torch.float32).tolist()
    return Gates(
        low, high, dtype,
        outside_low=_neighbour(low, dtype, strictly=False, up=False),
        inside_low=_neighbour(low, dtype, strictly=True, up=True),
        inside_high=_neighbour(high, dtype, strictly=True, up=False),
        outside_high=_neighbour(high, dtype, strictly=False, up=True),
    )  # fmt: skip


def exceeding(span: Tensor, threshold: float) -> Tensor:
    """Something that is not 0 exactly where `span` exceeds the threshold; faster than a comparison."""
    if threshold >= 0:
        return torch.threshold(span, threshold, 0.0)
    return (span - threshold).clamp_min_(0)


def _either(plane: Tensor, unset: float, is_set: float, out: Tensor) -> Tensor:
    """`out`, filled with one of two numbers for each bit."""
    table = bit_table().bool()
    bit_rows(plane, torch.where(table, is_set, unset).to(out.dtype), out)
    return out


def _neighbour(number: float, dtype: torch.dtype, *, strictly: bool, up: bool) -> float:
    """The next number of `dtype` above (`up`) or below; `number` itself if it is one, unless `strictly`."""
    if not math.isfinite(number):
        return number
    nearest = torch.tensor(number, dtype=dtype)
    beyond = float(nearest) - number if up else number - float(nearest)
    if beyond > 0 or (beyond == 0 and not strictly):
        return float(nearest)
    return float(torch.nextafter(nearest, torch.tensor(math.inf if up else -math.inf, dtype=dtype)))
