"""One bit an element, loss-free: masks, and the noise of dropout, which is 0 or one other value.

Code: 8 bytes that hold the other value's bits, then 8 elements a byte: in an order of the compiled kernels' own, or,
without them, the first in the lowest bit. (The operators below are the fastest that torch offers on the CPU:
comparisons that give booleans are several times slower than conversions to them, and a row look-up is faster than
shifts.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from torch import Tensor

from fedhybrid.codecs import kernels
from fedhybrid.codecs.base import CodecState, empty_dense, flat_view, numel_of, span_elements, spans
from fedhybrid.errors import FedHybridError

__all__ = ["BitMask", "Packer", "bit_rows", "bit_table", "packed_bytes"]

_HEADER_BYTES = 8
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_FIRST_LOOK = 2**10  # elements among which one that is not 0 is looked for first

# Eight booleans read as one 64-bit integer, times this: their bits stand side by side in the highest byte.
_GATHER = 0x0102040810204080


@final
@dataclass(frozen=True, kw_only=True)
class BitMask:
    """One bit an element, loss-free: masks, and the noise of dropout, which is 0 or one other value."""

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return "bits"

    @property
    def lossless(self) -> bool:
        """Always."""
        return True

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """Booleans and real floating point numbers."""
        return dtype == torch.bool or dtype.is_floating_point

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Eight bytes and one bit an element."""
        return _HEADER_BYTES + packed_bytes(numel_of(shape))

    def encode(self, x: Tensor, state: CodecState | None = None) -> Tensor:
        """See `Codec`.

        Raises:
            FedHybridError: A third value, or a negative zero, beside 0 and the other one.
        """
        # Bits are compared, not numbers, so that signed zeros and nan are seen.
        elements = flat_view(x).view(_INTEGERS[x.element_size()])
        code = torch.empty(self.encoded_bytes(x.shape, x.dtype), dtype=torch.uint8)
        value = 1 if x.dtype == torch.bool else _nonzero_of(elements)
        if kernels.available():
            two_valued = kernels.bits_encode(elements, value, code[_HEADER_BYTES:])
        else:
            two_valued = _encode(elements, value, code[_HEADER_BYTES:])
        if not two_valued:
            raise FedHybridError(
                f"the codec 'bits' stores tensors of 0 and one other value; this {x.dtype} tensor of shape "
                f"{list(x.shape)} holds a third. Keep it, or use another codec."
            )
        code[:_HEADER_BYTES].view(torch.int64).fill_(value)
        return code

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        out = empty_dense(like_shape, like_stride, dtype)
        elements = flat_view(out).view(_INTEGERS[out.element_size()])
        value = int(code[:_HEADER_BYTES].view(torch.int64))
        bits = code[_HEADER_BYTES:]
        if kernels.available():
            kernels.bits_decode(bits, value, elements)
            return out
        rows = bit_table().to(elements.dtype) * value
        for begin, end in spans(out.numel()):
            bit_rows(bits[begin // 8 :], rows, elements[begin:end])
        return out


def packed_bytes(numel: int) -> int:
    """Bytes of `numel` bits."""
    return -(-numel // 8)


def _nonzero_of(elements: Tensor) -> int:
    """Some element that is not 0; 0 if there is none."""
    begin, end = 0, _FIRST_LOOK
    while begin < len(elements):
        low, high = elements[begin:end].aminmax()
        if found := int(high) or int(low):
            return found
        begin, end = end, 8 * end
    return 0


def _encode(elements: Tensor, value: int, out: Tensor) -> bool:
    """What `kernels.bits_encode` does, with torch's own operators."""
    packer = Packer(span_elements(len(elements)))
    rest = torch.empty(packer.elements, dtype=elements.dtype)
    for begin, end in spans(len(elements)):
        span = elements[begin:end]
        packer.mark(span)
        if packer.any_marked_in(torch.bitwise_xor(span, value, out=rest[: end - begin])):
            return False
        packer.pack(out[begin // 8 :])
    return True


@final
class Packer:
    """Scratch memory for spans of at most `elements` elements, and what makes packed bits of them there."""

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self._marks, self._others = (torch.zeros(elements, dtype=torch.bool) for _ in range(2))
        self._words = torch.empty(elements // 8, dtype=torch.int64)
        self._count = 0

    def mark(self, span: Tensor) -> None:
        """Takes the elements that are not 0; the rest of the last byte stays empty."""
        self._count = packed_bytes(span.numel())
        self._marks[span.numel() : 8 * self._count] = False
        self._marks[: span.numel()].copy_(span)

    def any_marked_in(self, span: Tensor) -> bool:
        """Whether an element that is marked is also not 0 in `span`."""
        self._others[span.numel() : 8 * self._count] = False
        self._others[: span.numel()].copy_(span)
        marks, others = (m.view(torch.int64)[: self._count] for m in (self._marks, self._others))
        return bool(torch.bitwise_and(marks, others, out=self._words[: self._count]).amax())

    def pack(self, out: Tensor) -> None:
        """Writes the marks to the first bytes of `out`, 8 a byte."""
        words = torch.mul(self._marks.view(torch.int64)[: self._count], _GATHER, out=self._words[: self._count])
        out[: self._count].copy_(words.view(torch.uint8).view(-1, 8)[:, 7])


def bit_rows(packed: Tensor, rows: Tensor, out: Tensor) -> None:
    """Fills `out` with one row of `rows` for each byte of `packed`.

    Args:
        packed: Bytes, at least as many as `out` needs.
        rows: Shape (256, 8): what the eight elements of each byte become.
        out: Shape (elements,); its last byte may be used in part.
    """
    whole, rest = divmod(out.numel(), 8)
    number = packed[: packed_bytes(out.numel())].to(torch.int32)
    if whole and rows.element_size() == 1:  # eight of them are one integer: no small copies
        torch.index_select(rows.view(torch.int64).view(256), 0, number[:whole], out=out[: 8 * whole].view(torch.int64))
    elif whole:
        torch.index_select(rows, 0, number[:whole], out=out[: 8 * whole].view(whole, 8))
    if rest:
        out[8 * whole :] = rows[int(number[whole]), :rest]


@cache
def bit_table() -> Tensor:
    """Shape (256, 8): the bits of each byte, lowest first."""
    return (torch.arange(256).view(256, 1) >> torch.arange(8) & 1).to(torch.uint8)
