"""A bit map of what is not zero, and those elements side by side: for outputs of a ReLU that are mostly zero.

About 10 copies' time in each direction: torch has no fast operator for it. (A sum over the bit map says where each
element goes; that is several times faster than `masked_select` and `masked_scatter`, which branch at every element.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedhybrid.codecs.base import CodecState, flat_view, numel_of
from fedhybrid.codecs.bits import Packer, bit_rows, bit_table, packed_bytes
from fedhybrid.codecs.lossy import FLOAT_TYPES, LossyCodec
from fedhybrid.errors import ConfigError, FedHybridError

__all__ = ["Sparse", "sparse"]

_LARGEST_SPAN, _SMALLEST_SPAN, _SPANS = 2**14, 2**11, 128
_INTEGERS = {2: torch.int16, 4: torch.int32}
_ALIGNED_BYTES = 4


@final
@dataclass(frozen=True, kw_only=True)
class Sparse:
    """A bit map of what is not zero, and those elements side by side, in room for a given share of all.

    Error: none while the elements that are not zero fit, negative zeros (which count as not zero) and nan included.
    The code's length must not depend on the values, so of a fuller tensor only the first elements that fit come back
    exactly, in memory order; each of the others comes back as the mean of those others. All zeros come back exactly
    even then, and where no element is negative (behind a ReLU) all that is not zero stays positive.

    Attributes:
        density_ratio: Share of the elements that there is room for, 0 to 1.
    """

    density_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.density_ratio <= 1:
            raise ConfigError(f"density_ratio must be from 0 to 1, got {self.density_ratio}")

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return "sparse"

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """32- and 16-bit floating point numbers."""
        return dtype in FLOAT_TYPES

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """The share's elements, one bit an element, a number for some thousands, and the mean of what did not fit."""
        numel = numel_of(shape)
        return self._values_begin(numel) + self._room(numel) * dtype.itemsize + packed_bytes(numel)

    def encode_into(self, code: Tensor, x: Tensor, state: CodecState) -> None:
        """See `LossyPart`.

        Raises:
            FedHybridError: The mean of what did not fit is not finite.
        """
        counts, mean, values, bits = self._parts(code, x.numel(), x.dtype)
        elements = flat_view(x)
        integers = elements.view(_INTEGERS[x.element_size()])  # their bits: negative zeros are not zero
        work, packer = _Work(values.dtype, x.numel()), Packer(_span(x.numel()))
        filled, overflow, total = 0, 0, 0.0
        for number, (begin, end) in enumerate(_spans(x.numel())):
            packer.mark(integers[begin:end])
            packer.pack(bits[begin // 8 :])
            count = work.gather(integers[begin:end], bits[begin // 8 :])
            counts[number] = count
            found = work.found[1 : count + 1]
            kept = min(count, len(values) - filled)
            values[filled : filled + kept] = found[:kept]
            if kept < count:
                overflow += count - kept
                total += float(found[kept:].view(x.dtype).sum(dtype=torch.float64))
            filled += kept
        values[filled:] = 0
        mean.zero_().view(x.dtype)[0] = total / max(1, overflow)
        if not math.isfinite(total):
            raise FedHybridError(
                f"the codec 'sparse' has room for {self.density_ratio:.0%} of a {x.dtype} tensor of shape "
                f"{list(x.shape)}; {filled + overflow} of its elements are not zero, and the rest holds nan or "
                "infinity. The training has diverged (try a smaller learning rate), or keep this tensor."
            )

    def decode_into(self, out: Tensor, code: Tensor) -> None:
        """See `LossyPart`."""
        counts, mean, values, bits = self._parts(code, out.numel(), out.dtype)
        integers = flat_view(out).view(_INTEGERS[out.element_size()])
        work, rest = _Work(values.dtype, out.numel()), int(mean.view(values.dtype)[0])
        filled = 0
        for (begin, end), count in zip(_spans(out.numel()), counts.tolist(), strict=True):
            kept = min(count, len(values) - filled)
            work.found[1 : kept + 1] = values[filled : filled + kept]
            work.found[kept + 1 : count + 1] = rest
            work.scatter(integers[begin:end], bits[begin // 8 :])
            filled += kept

    def _room(self, numel: int) -> int:
        return math.ceil(self.density_ratio * numel)

    def _values_begin(self, numel: int) -> int:
        return 4 * -(-numel // _span(numel)) + _ALIGNED_BYTES

    def _parts(self, code: Tensor, numel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Elements of each span that are not zero; the mean of what did not fit; what did; the bit map."""
        begin = self._values_begin(numel)
        end = begin + self._room(numel) * dtype.itemsize
        facts = code[:begin].view(torch.int32)
        return (
            facts[:-1],
            code[begin - _ALIGNED_BYTES : begin],
            code[begin:end].view(_INTEGERS[dtype.itemsize]),
            code[end:],
        )


class _Work:
    """Scratch memory: `found` holds what is not zero in a span, in order, from its second element on."""

    def __init__(self, dtype: torch.dtype, numel: int) -> None:
        span = _span(numel)
        self.found = torch.zeros(span + 1, dtype=dtype)
        self._places = torch.empty(span, dtype=torch.int64)
        self._marks = torch.empty(span, dtype=torch.int64)
        self._rows = bit_table().to(torch.int64)

    def _fill_places(self, count: int, bits: Tensor) -> Tensor:
        """Where in `found` each element stands; 0 for zeros."""
        marks, places = self._marks[:count], self._places[:count]
        bit_rows(bits, self._rows, marks)
        return torch.cumsum(marks, 0, out=places).mul_(marks)

    def gather(self, span: Tensor, bits: Tensor) -> int:
        places = self._fill_places(len(span), bits)
        self.found.scatter_(0, places, span)
        return int(places.amax())

    def scatter(self, span: Tensor, bits: Tensor) -> None:
        self.found[0] = 0
        torch.index_select(self.found, 0, self._fill_places(len(span), bits), out=span)


def _span(numel: int) -> int:
    """Elements that are worked on at once, a power of two."""
    return min(_LARGEST_SPAN, max(_SMALLEST_SPAN, 1 << (numel // _SPANS).bit_length()))


def _spans(numel: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, numel, _span(numel)):
        yield begin, min(begin + _span(numel), numel)


def sparse(*, density_ratio: float = 0.5, gates: tuple[float, float] | None = None) -> LossyCodec:
    """What is not zero side by side, exactly while it fits into the given share, with exact gates if asked."""
    return LossyCodec(Sparse(density_ratio=density_ratio), gates)
