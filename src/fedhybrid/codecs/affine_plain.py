"""What the affine codec does where there are no compiled kernels.

Without gates, and with planes of them: torch's row-wise packing of embedding tables
(`quantized::embedding_bag_*_prepack`), the fastest quantiser that torch has on the CPU. Those operators lose ranges
below about 1e-8, and in 4 and 2 bits a group's range is two 16-bit floats, so spans whose values are all small, or very
large, are scaled by a power of two first.

Clamped tensors: plain arithmetic, a span at a time, so that the numbers' meaning is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedhybrid.codecs.base import span_elements, spans
from fedhybrid.codecs.bits import Packer, packed_bytes
from fedhybrid.codecs.gates import Gates, exceeding

__all__ = ["decode", "decode_clamped", "encode", "encode_clamped"]

# Spans whose largest magnitude lies in [2**(e - 1), 2**e) with such an e are stored as they are, others are scaled to
# the last of them as far as a factor that is a normal number can.
_PLAIN_EXPONENTS = range(0, 16)
_LARGEST_SHIFT = 126

_NATIVE_RANGE_BYTES = {8: 8, 4: 4, 2: 4}  # of torch's rows: two 32-bit floats, or two 16-bit floats
_FACTOR_BYTES = 4  # the rest of a group's eight: its span's factor


def encode(elements: Tensor, code: Tensor, *, bits: int, group: int, gates: Gates) -> bool:
    """Fills the code; False if something is not finite.

    Args:
        elements: In memory order, shape (numel,), numel > 0.
        code: Bytes, as many as `GroupAffine` says.
        bits: Of an element.
        group: Elements a group.
        gates: Kept in planes.
    """
    numel = len(elements)
    factors, rows, planes = _parts(code, numel, bits, group, gates.planes)
    packer = Packer(span_elements(numel)) if planes else None
    for begin, end in spans(numel):
        span = elements[begin:end].float()  # no copy of 32-bit elements
        low, high = (float(bound) for bound in span.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        factor = _factor(max(-low, high))
        those = slice(begin // group, -(-end // group))
        _pack(span if factor == 1 else span * factor, rows[those], bits, group)
        if factors is not None:
            factors[those] = factor
        elif factor != 1:
            rows[those, group:].view(torch.float32).div_(factor)
        for threshold, plane in zip(gates.thresholds, planes, strict=True):
            assert packer is not None
            packer.mark(exceeding(span, threshold))
            packer.pack(plane[begin // 8 :])
    return True


def decode(code: Tensor, elements: Tensor, *, bits: int, group: int, gates: Gates) -> None:
    """Fills the elements; arguments as in `encode`."""
    numel, largest = len(elements), torch.finfo(elements.dtype).max
    factors, rows, planes = _parts(code, numel, bits, group, gates.planes)
    unpack = _operator(bits, "unpack")
    for begin, end in spans(numel):
        span = unpack(rows[begin // group : -(-end // group)]).view(-1)[: end - begin]
        if factors is not None:
            factor = float(factors[begin // group])
            if factor != 1:
                span /= factor
        if planes:
            gates.enforce(span, (-math.inf, math.inf), [plane[begin // 8 :] for plane in planes])
        if elements.dtype == span.dtype:
            torch.clamp(span, -largest, largest, out=elements[begin:end])
        else:
            elements[begin:end].copy_(span.clamp_(-largest, largest))


def _parts(code: Tensor, numel: int, bits: int, group: int, planes: int) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """The code's parts: a factor for each group unless its range holds that too, torch's rows, bits of each gate."""
    count, row_bytes = -(-numel // group), group * bits // 8 + _NATIVE_RANGE_BYTES[bits]
    begin = 0 if bits == 8 else _FACTOR_BYTES * count
    end = begin + row_bytes * count
    factors = code[:begin].view(torch.float32) if begin else None
    return factors, code[begin:end].view(-1, row_bytes), [code[end + i * packed_bytes(numel) :] for i in range(planes)]


def _operator(bits: int, verb: str) -> Callable[[Tensor], Tensor]:
    width = "byte" if bits == 8 else f"{bits}bit"
    operator: Callable[[Tensor], Tensor] = getattr(torch.ops.quantized, f"embedding_bag_{width}_{verb}")
    return operator


def _pack(span: Tensor, rows: Tensor, bits: int, group: int) -> None:
    pack = _operator(bits, "prepack")
    for first, piece in _pieces(span, 0, group):
        rows[first : first + len(piece)] = pack(piece)


def _pieces(span: Tensor, first: int, group: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first group, groups) of a span: the full ones, then a last one filled up with its first element.

    Args:
        span: Shape (elements,).
        first: Number of the span's first group.
        group: Elements a group.
    """
    whole, rest = divmod(span.numel(), group)
    if whole:
        yield first, span[: whole * group].view(whole, group)
    if rest:
        last = span[whole * group :]
        yield first + whole, torch.cat((last, last[:1].expand(group - rest))).view(1, group)


def _factor(magnitude: float) -> float:
    """The power of two that a span of that largest magnitude is multiplied by."""
    exponent = math.frexp(magnitude)[1]
    if magnitude == 0 or exponent in _PLAIN_EXPONENTS:
        return 1.0
    return math.ldexp(1.0, min(_LARGEST_SHIFT, _PLAIN_EXPONENTS[-1] - exponent))


# ---- clamped tensors: element = base + number * step, each group with a base and a step of its own. A group with
# elements on the low gate has its base there; one with elements on the high gate has its largest number there, and the
# step's sign says so.

_SLIGHTLY_MORE = 1 + 2.0**-22  # makes base + levels * step reach the gate in spite of rounding
_SMALLEST_STEP = 2.0**-126  # the smallest normal 32-bit float: its inverse is one as well


def encode_clamped(elements: Tensor, code: Tensor, *, bits: int, group: int, gates: Gates) -> bool:
    """As `encode`, for elements of which none lies beyond the gates; these are kept in the numbers themselves."""
    numel, levels = len(elements), 2**bits - 1
    ranges, rows = _clamped_parts(code, numel, bits, group)
    extremes = [(p.amin(1, keepdim=True), p.amax(1, keepdim=True)) for _, p in _pieces(elements, 0, group)]
    low, high = (torch.cat(bounds).float() for bounds in zip(*extremes, strict=True))
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        return False
    base, step, at_high = _grid(low, high, levels, gates)
    torch.cat((base, torch.where(at_high > 0, -step, step)), 1, out=ranges)
    inverse = torch.where(step > 0, 1 / step, 0)
    scratch = [torch.empty(-(-span_elements(numel) // group) * group) for _ in range(2)]
    for begin, end in spans(numel):
        for first, piece in _pieces(elements[begin:end].float(), begin // group, group):
            number, sign = (s[: piece.numel()].view(piece.shape) for s in scratch)
            those = slice(first, first + len(piece))
            torch.sub(piece, base[those], out=number)
            if math.isfinite(gates.low):
                torch.sign(number, out=sign)  # what is above the gate has number 1 at least
            number.mul_(inverse[those]).round_()
            if math.isfinite(gates.low):
                torch.maximum(number, sign, out=number)
            if math.isfinite(gates.high):
                torch.sub(piece, gates.outside_high, out=sign).sign_()  # 0 on the gate, else -1
                torch.minimum(number, sign.mul_(at_high[those]).add_(levels), out=number)
                torch.maximum(number, sign.sub_(levels - 1).mul_(at_high[those] * levels), out=number)
            _pack_bytes(number, rows[those], bits, sign)
    return True


def decode_clamped(code: Tensor, elements: Tensor, *, bits: int, group: int, gates: Gates) -> None:
    """Fills the elements; arguments as in `encode`."""
    numel, levels, largest = len(elements), 2**bits - 1, torch.finfo(elements.dtype).max
    ranges, rows = _clamped_parts(code, numel, bits, group)
    base, signed = ranges[:, :1], ranges[:, 1:]
    step, above = signed.abs(), (signed < 0) * (gates.outside_high - gates.inside_high)
    scratch = [torch.empty(-(-span_elements(numel) // group) * group).view(-1, group) for _ in range(2)]
    for begin, end in spans(numel):
        those = slice(begin // group, -(-end // group))
        number, bound = (s[: those.stop - those.start] for s in scratch)
        _unpack_bytes(rows[those], number, bits)
        if math.isfinite(gates.high):
            torch.sub(number, levels - 1, out=bound).clamp_min_(0)  # 1 for the largest number, else 0
            bound.mul_(above[those]).add_(gates.inside_high)
        number.mul_(step[those]).add_(base[those])
        if math.isfinite(gates.high):
            torch.minimum(number, bound, out=number)
        found = number.view(-1)[: end - begin]
        if elements.dtype == found.dtype:
            torch.clamp(found, -largest, largest, out=elements[begin:end])
        else:
            elements[begin:end].copy_(found.clamp_(-largest, largest))


def _grid(low: Tensor, high: Tensor, levels: int, gates: Gates) -> tuple[Tensor, Tensor, Tensor]:
    """(base, step, 1 where there are elements on the high gate, else 0) of groups with these ranges, same shape."""
    at_low, at_high = low <= gates.low, high >= gates.high
    base = torch.where(at_low, gates.outside_low, low)
    top = torch.where(at_high, gates.outside_high, high)
    step = (top / 2 - base / 2) / levels * (2 * _SLIGHTLY_MORE)  # halves do not overflow
    least = torch.where(at_low, gates.inside_low - gates.outside_low, 0.0).clamp_min_(_SMALLEST_STEP)
    return base, torch.where((top > base) | at_high, torch.maximum(step, least), 0.0), at_high.float()


def _clamped_parts(code: Tensor, numel: int, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Base and step of each group, 32-bit floats; bytes of each group's numbers."""
    count = -(-numel // group)
    return code[: 8 * count].view(torch.float32).view(count, 2), code[8 * count :].view(count, group * bits // 8)


def _pack_bytes(number: Tensor, rows: Tensor, bits: int, scratch: Tensor) -> None:
    """Whole numbers below 2**bits, shape (groups, group), to bytes; the numbers are lost."""
    width = rows.shape[1]
    for place in range(1, 8 // bits):
        number[:, :width].add_(number[:, place * width : (place + 1) * width], alpha=2 ** (bits * place))
    halves = scratch.view(-1).view(torch.int16)[: rows.numel()].view(rows.shape)
    rows.copy_(halves.copy_(number[:, :width]))  # by way of 16 bits: torch's conversion from floats to bytes is slow


def _unpack_bytes(rows: Tensor, number: Tensor, bits: int) -> None:
    """And back."""
    width = rows.shape[1]
    number[:, :width] = rows
    for place in range(8 // bits - 1, 0, -1):
        unit = 2.0 ** (bits * place)
        upper = number[:, place * width : (place + 1) * width]
        torch.mul(number[:, :width], 1 / unit, out=upper).floor_()
        number[:, :width].sub_(upper, alpha=unit)
