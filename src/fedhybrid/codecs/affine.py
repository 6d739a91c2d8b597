"""Groups of 256 elements in 8 or 4 bits each, between the group's smallest and largest value, rounded to nearest.

Built on torch's row-wise packing of embedding tables (`quantized::embedding_bag_*_prepack`), the fastest quantiser that
torch has on the CPU. Those operators lose ranges below about 1e-8, and in 4 bits a group's range is two 16-bit floats,
so spans whose values are all small, or very large, are scaled by a power of two first.

Exact gates: a small positive output of a ReLU that is rounded to 0 switches a gradient off, which harms training far
more than the rounding itself. With gates, one bit an element and gate keeps every element on its side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from fedhybrid.codecs.base import CodecState, empty_dense, flat_view, numel_of, span_elements, spans
from fedhybrid.codecs.bits import Packer, packed_bytes
from fedhybrid.codecs.gates import Gates, exceeding
from fedhybrid.errors import ConfigError, FedHybridError

__all__ = ["GroupAffine", "affine_4", "affine_8"]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST_GROUP = 2**15  # the smallest span
_FACTS = 3  # of each span: smallest value, largest value, factor; 32-bit floats
_FACT_BYTES = 4 * _FACTS

# Spans whose largest magnitude lies in [2**(e - 1), 2**e) with such an e are stored as they are, others are scaled to
# the last of them as far as a factor that is a normal number can.
_PLAIN_EXPONENTS = range(0, 16)
_LARGEST_SHIFT = 126


@final
@dataclass(frozen=True, kw_only=True)
class GroupAffine:
    """Groups of elements in 8 or 4 bits each, between the group's smallest and largest value.

    Error, with r = largest - smallest value and m = largest magnitude of the group, M = largest magnitude of all:
    at most r / 510 + 2**-19 M in 8 bits; r / 30 + 2**-11 m + 2**-10 r + 2**-19 M in 4 (whose ranges are 16-bit
    floats); a 16-bit type rounds once more. Gates move a value towards the element's, never away.

    Attributes:
        bits: 8 or 4.
        group: Elements a group, a power of two.
        gates: (low, high), infinite where there is none: `x <= low`, `low < x < high` and `x >= high` hold for every
            decoded element exactly where they held before. In a span without elements beyond the gates (the output of
            a clamp), those on a gate are decoded to it exactly. Costs one bit an element and finite gate.
    """

    bits: Literal[4, 8] = 8
    group: int = 256
    gates: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.bits not in (4, 8):
            problems.append(f"bits must be 4 or 8, got {self.bits}")
        if not 2 <= self.group <= _LARGEST_GROUP or self.group & (self.group - 1):
            problems.append(f"group must be a power of two from 2 to {_LARGEST_GROUP}, got {self.group}")
        if self.gates is not None and not self.gates[0] < self.gates[1]:
            problems.append(f"gates must be (low, high) with low < high, got {self.gates}")
        if problems:
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return f"affine-{self.bits}"

    @property
    def lossless(self) -> bool:
        """Never."""
        return False

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """32- and 16-bit floating point numbers."""
        return dtype in _TYPES

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """The groups, three numbers a span, and one bit an element and finite gate."""
        numel = numel_of(shape)
        return self._rows_end(numel) + Gates.of(self.gates, dtype).planes * packed_bytes(numel)

    def encode(self, x: Tensor, state: CodecState | None = None) -> Tensor:
        """See `Codec`.

        Raises:
            FedHybridError: Something in `x` is not finite. One nan would silently spoil its whole group, and the look
                at each span's range is needed for its scale anyway.
        """
        elements, gates = flat_view(x), Gates.of(self.gates, x.dtype)
        code = torch.empty(self.encoded_bytes(x.shape, x.dtype), dtype=torch.uint8)
        facts, rows, planes = self._parts(code, x.numel(), gates.planes)
        packer = Packer(span_elements(x.numel())) if planes else None
        for number, (begin, end) in enumerate(spans(x.numel())):
            span = elements[begin:end].float()  # no copy of 32-bit elements
            low, high = (float(bound) for bound in span.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise FedHybridError(
                    f"the codec {self.name!r} stores finite numbers; a {x.dtype} tensor of shape {list(x.shape)} holds "
                    "nan or infinity. The training has diverged (try a smaller learning rate), or keep this tensor."
                )
            factor = _factor(max(-low, high))
            facts[number] = torch.tensor((low, high, factor))
            self._pack(span if factor == 1 else span * factor, rows[begin // self.group :])
            for threshold, plane in zip(gates.thresholds, planes, strict=True):
                assert packer is not None
                packer.mark(exceeding(span, threshold))
                packer.pack(plane[begin // 8 :])
        return code

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        out, gates = empty_dense(like_shape, like_stride, dtype), Gates.of(self.gates, dtype)
        elements = flat_view(out)
        facts, rows, planes = self._parts(code, out.numel(), gates.planes)
        for number, (begin, end) in enumerate(spans(out.numel())):
            low, high, factor = facts[number].tolist()
            span = self._unpack(rows[begin // self.group : -(-end // self.group)])[: end - begin]
            if factor != 1:
                span /= factor
            if planes:
                gates.enforce(span.clamp_(low, high), (low, high), [plane[begin // 8 :] for plane in planes])
                elements[begin:end].copy_(span)
            elif dtype == span.dtype:
                torch.clamp(span, low, high, out=elements[begin:end])
            else:
                elements[begin:end].copy_(span.clamp_(low, high))
        return out

    @property
    def _row_bytes(self) -> int:
        """A group's numbers and its range: two 32-bit floats in 8 bits, two 16-bit floats in 4."""
        return self.group * self.bits // 8 + self.bits

    def _rows_end(self, numel: int) -> int:
        return _FACT_BYTES * -(-numel // span_elements(numel)) + self._row_bytes * -(-numel // self.group)

    def _parts(self, code: Tensor, numel: int, planes: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The code's parts: facts of the spans, rows of the groups, bits of each gate."""
        facts_end, rows_end = _FACT_BYTES * -(-numel // span_elements(numel)), self._rows_end(numel)
        facts = code[:facts_end].view(torch.float32).view(-1, _FACTS)
        rows = code[facts_end:rows_end].view(-1, self._row_bytes)
        return facts, rows, [code[rows_end + i * packed_bytes(numel) :] for i in range(planes)]

    def _pack(self, span: Tensor, rows: Tensor) -> None:
        pack = torch.ops.quantized.embedding_bag_byte_prepack
        if self.bits == 4:
            pack = torch.ops.quantized.embedding_bag_4bit_prepack
        whole, rest = divmod(span.numel(), self.group)
        if whole:
            rows[:whole] = pack(span[: whole * self.group].view(whole, self.group))
        if rest:
            last = span[whole * self.group :]
            rows[whole] = pack(torch.cat((last, last[:1].expand(self.group - rest))).view(1, self.group))[0]

    def _unpack(self, rows: Tensor) -> Tensor:
        unpack = torch.ops.quantized.embedding_bag_byte_unpack
        if self.bits == 4:
            unpack = torch.ops.quantized.embedding_bag_4bit_unpack
        found: Tensor = unpack(rows)
        return found.view(-1)


def affine_8(gates: tuple[float, float] | None = None) -> GroupAffine:
    """Groups of 256 elements in 8 bits each (27 % of 32-bit floats), with exact gates if asked."""
    return GroupAffine(bits=8, gates=gates)


def affine_4(gates: tuple[float, float] | None = None) -> GroupAffine:
    """Groups of 256 elements in 4 bits each (13 % of 32-bit floats), with exact gates if asked."""
    return GroupAffine(bits=4, gates=gates)


def _factor(magnitude: float) -> float:
    """The power of two that a span of that largest magnitude is multiplied by."""
    exponent = math.frexp(magnitude)[1]
    if magnitude == 0 or exponent in _PLAIN_EXPONENTS:
        return 1.0
    return math.ldexp(1.0, min(_LARGEST_SHIFT, _PLAIN_EXPONENTS[-1] - exponent))
