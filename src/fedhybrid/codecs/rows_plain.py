"""What `rows` does where there are no compiled kernels: torch's own operators, a block of rows at a time.

The first code of a byte lies in its lowest bits. (Packing multiplies words that hold a byte for each code; conversions
go by way of 16-bit integers. Both are several times faster than shifts of bytes and conversions from floats to bytes.)
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Block", "RowLayout", "block_size", "blocks", "decode", "encode", "measure_range", "run_bytes"]

_LARGEST_BLOCK, _SMALLEST_BLOCK, _BLOCKS = 2**17, 2**14, 16
_NOISE = 2**12
_PAD = 8  # elements of a row in a block are padded to a multiple of it: whole words for every width

# A word holds the codes of one byte. One multiplication gathers them in its highest byte (no two of them meet there).
_WORDS = {4: torch.int16, 2: torch.int32, 1: torch.int64}
_GATHER = {4: (0x0110, 8), 2: (0x01041040, 24), 1: (0x0102040810204080, 56)}
# And back: shift left, "or", keep these bits, until every code has a byte of its own.
_SPREAD = {
    4: ((4, 0x0F0F),),
    2: ((12, 0x000F000F), (6, 0x03030303)),
    1: ((28, 0x0000000F0000000F), (14, 0x0003000300030003), (7, 0x0101010101010101)),
}


class RowLayout(NamedTuple):
    """A tensor's memory seen as [outer, rows, cols]."""

    outer: int
    rows: int
    cols: int

    @property
    def length(self) -> int:
        """Elements a row."""
        return self.outer * self.cols


def run_bytes(length: int, bits: int) -> int:
    """Bytes of the codes of a row of `length` elements."""
    return -(-length * bits // 8)


def measure_range(x: Tensor, layout: RowLayout, low: Tensor, high: Tensor) -> None:
    """See `rows.rows_range`."""
    outer, rows, cols = layout
    if cols == 1:
        low.copy_(x.view(outer, rows).amin(0))
        high.copy_(x.view(outer, rows).amax(0))
    else:
        runs = x.view(outer * rows, cols)  # along memory first: several times faster than both at once
        low.copy_(runs.amin(1).view(outer, rows).amin(0))
        high.copy_(runs.amax(1).view(outer, rows).amax(0))


def encode(  # noqa: PLR0917 - as the kernels take them
    x: Tensor,
    layout: RowLayout,
    bits: Tensor,
    low: Tensor,
    step: Tensor,
    offsets: Tensor,
    seed: int | None,
    out: Tensor,
    *,
    positive: bool,
    count: int = _BLOCKS,
) -> None:
    """See `rows.rows_encode`; in about `count` blocks."""
    work = _Work(layout, bits, offsets, count)
    noise = None if seed is None else _Noise(seed)
    limits, inverse = torch.exp2(bits.float()) - 0.5, step.reciprocal()
    parts = x.view(layout)
    for block in blocks(layout, count):
        rows, span = block.rows, parts[block.lines, block.rows, block.cols]
        values = work.values(span)
        if positive:
            span = torch.ops.aten.threshold_(values.copy_(span), 0.0, -math.inf)
        torch.sub(span, low[rows, None], out=values).mul_(inverse[rows, None])
        if noise is None:
            values.add_(0.5)
        else:
            noise.add_to(values.view(-1), work.spare)
        torch.minimum(values.clamp_min_(0), limits[rows, None], out=values)
        ordered = work.ordered(block)
        ordered[:, block.length :] = 0
        _by_line(ordered, block).copy_(work.bytes_of(values).transpose(0, 1))
        for width, target, number in work.runs(block, out):
            codes = ordered
            if number is not None:
                codes = torch.index_select(ordered, 0, number, out=work.picked(len(number), block))
            if width == 8:
                target.copy_(codes[:, : target.shape[1]])
            else:
                factor, shift = _GATHER[width]
                words = codes.view(_WORDS[width]).mul_(factor).bitwise_right_shift_(shift)
                target.copy_(words[:, : target.shape[1]])


def decode(  # noqa: PLR0917 - as the kernels take them
    code: Tensor,
    layout: RowLayout,
    bits: Tensor,
    low: Tensor,
    step: Tensor,
    offsets: Tensor,
    out: Tensor,
    *,
    count: int = _BLOCKS,
) -> None:
    """See `rows.rows_decode`; in about `count` blocks."""
    work = _Work(layout, bits, offsets, count)
    parts = out.view(layout)
    for block in blocks(layout, count):
        rows, span = block.rows, parts[block.lines, block.rows, block.cols]
        ordered = work.ordered(block)
        for width, source, number in work.runs(block, code):
            picked = ordered if number is None else work.picked(len(number), block)
            if width == 8:
                picked[:, : source.shape[1]] = source
            else:
                words = picked.view(_WORDS[width])
                words[:, : source.shape[1]] = source
                shifted = work.shifted(words)
                for shift, kept in _SPREAD[width]:
                    torch.bitwise_left_shift(words, shift, out=shifted)
                    words.bitwise_or_(shifted).bitwise_and_(kept)
            if number is not None:
                ordered.index_copy_(0, number, picked)
        values = work.floats_of(_by_line(ordered, block).transpose(0, 1)).mul_(step[rows, None])
        if span.dtype == values.dtype:
            torch.add(values, low[rows, None], out=span)
        else:
            span.copy_(values.add_(low[rows, None]))


class Block(NamedTuple):
    """What is worked on at once: for each of its rows, elements [begin, begin + length) of the row."""

    lines: slice
    rows: slice
    cols: slice
    begin: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Lines, rows, columns."""
        lines, rows, cols = (s.stop - s.start for s in (self.lines, self.rows, self.cols))
        return lines, rows, cols

    @property
    def length(self) -> int:
        """Elements of each of its rows."""
        return self.shape[0] * self.shape[2]

    @property
    def padded(self) -> int:
        """The same with padding."""
        return -(-self.length // _PAD) * _PAD


def _by_line(ordered: Tensor, block: Block) -> Tensor:
    lines, _, cols = block.shape
    return ordered.as_strided((len(ordered), lines, cols), (block.padded, cols, 1))


class _Work:
    """Blocks, their rows' runs, and scratch memory of one size however the widths are: nine bytes an element."""

    def __init__(self, layout: RowLayout, bits: Tensor, offsets: Tensor, count: int) -> None:
        self._layout, widths, begins = layout, bits.tolist(), offsets.tolist()
        self._members = {w: [row for row, width in enumerate(widths) if width == w] for w in sorted(set(widths))}
        self._begins = {w: begins[rows[0]] for w, rows in self._members.items()}
        self._order = {w: torch.tensor(rows) for w, rows in self._members.items()}
        lines, group, span = block_size(layout, count)
        size, padded = lines * group * span, group * (lines * span + _PAD)
        self._picked_bytes = -(-max(2 * size, padded) // 8) * 8
        self._ordered_begin = -(-(self._picked_bytes + size) // 8) * 8
        self._values = torch.empty(max(size, -(-padded // 4)))
        raw_bytes = max(self._ordered_begin + padded, 4 * (size + _NOISE))
        self._raw = torch.empty(-(-raw_bytes // 8) * 8, dtype=torch.uint8)
        self._numbers = torch.empty(group, dtype=torch.int64)

    @property
    def spare(self) -> Tensor:
        """Memory for as many floats as a block has elements, and `_NOISE` more; what is not `values` is lost."""
        return self._raw.view(torch.float32)

    def values(self, like: Tensor) -> Tensor:
        return self._values[: like.numel()].view(like.shape)

    def bytes_of(self, values: Tensor) -> Tensor:
        """The whole parts of numbers in [0, 256), same shape."""
        size = values.numel()  # by way of 16 bits: torch's conversion from floats to bytes is slow
        halves = self._raw[: 2 * size].view(torch.int16).view(values.shape).copy_(values)
        return self._natural(values).copy_(halves)

    def floats_of(self, codes: Tensor) -> Tensor:
        natural = self._natural(codes).copy_(codes)
        return self.values(codes).copy_(natural)

    def _natural(self, like: Tensor) -> Tensor:
        return self._raw[self._picked_bytes :][: like.numel()].view(like.shape)

    def ordered(self, block: Block) -> Tensor:
        """Memory for the codes by row, a byte each."""
        return self._raw[self._ordered_begin :][: block.shape[1] * block.padded].view(-1, block.padded)

    def picked(self, count: int, block: Block) -> Tensor:
        """The same for some of the rows."""
        return self._raw[: count * block.padded].view(count, block.padded)

    def shifted(self, words: Tensor) -> Tensor:
        raw = self._values.view(torch.uint8)[: words.numel() * words.element_size()]
        return raw.view(words.dtype).view(words.shape)

    def runs(self, block: Block, code: Tensor) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """For each width: the width, its rows' bytes in the code, and their numbers in the block (None: all)."""
        first, last = block.rows.start, block.rows.stop
        for width, members in self._members.items():
            begin, end = bisect_left(members, first), bisect_left(members, last)
            if begin == end:
                continue
            run = run_bytes(self._layout.length, width)
            runs = code[self._begins[width] :][begin * run : end * run].view(-1, run)
            offset = block.begin * width // 8
            target = runs[:, offset : offset + run_bytes(block.length, width)]
            number = torch.sub(self._order[width][begin:end], first, out=self._numbers[: end - begin])
            yield width, target, None if end - begin == last - first else number


class _Noise:
    """Uniform numbers in [0, 1); any two are independent, as each is the sum modulo 1 of two that no other has both."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._first = torch.rand(_NOISE, generator=self._generator)

    def add_to(self, values: Tensor, scratch: Tensor) -> None:
        count = -(-values.numel() // _NOISE)
        second = torch.rand((count, 1), generator=self._generator)
        noise = torch.add(self._first, second, out=scratch[: count * _NOISE].view(count, _NOISE)).frac_()
        values.add_(noise.view(-1)[: values.numel()])


def blocks(layout: RowLayout, count: int = _BLOCKS) -> Iterator[Block]:
    """Blocks of at most `block_size`, lines outermost."""
    outer, rows, cols = layout
    lines, group, span = block_size(layout, count)
    for line in range(0, outer, lines):
        for row in range(0, rows, group):
            for col in range(0, cols, span):
                yield Block(
                    slice(line, min(outer, line + lines)),
                    slice(row, min(rows, row + group)),
                    slice(col, min(cols, col + span)),
                    line * cols + col,
                )


def block_size(layout: RowLayout, count: int = _BLOCKS) -> tuple[int, int, int]:
    """Lines, rows and columns of a block, so that every block begins at a byte of its rows' runs."""
    outer, rows, cols = layout
    wanted = 1 << max(0, (outer * rows * cols // count).bit_length() - 1)
    wanted = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, wanted))
    lines = min(outer, max(_PAD, wanted // max(1, rows * cols) // _PAD * _PAD))
    if lines * cols > wanted and (outer == 1 or cols % _PAD == 0):  # else long rows of odd length stay whole
        return 1, max(1, min(rows, wanted // cols)), min(cols, wanted)
    return lines, max(1, min(rows, wanted // max(1, lines * cols), wanted // _PAD)), max(1, cols)
