"""Rows of a tensor in 1, 2, 4 or 8 bits an element, each row with a range and a width of its own.

A dense tensor with one distinguished dimension (its channels, its heads) is [outer, rows, cols] in memory order,
whatever its strides. The codes of a row stand side by side in a run of whole bytes; compiled kernels and torch's own
operators order them differently there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedhybrid.codecs import kernels, rows_plain
from fedhybrid.codecs.base import numel_of
from fedhybrid.codecs.rows_plain import RowLayout, run_bytes
from fedhybrid.errors import FedHybridError

__all__ = [
    "SMALLEST_STEP",
    "RowLayout",
    "refusal",
    "round_down",
    "round_up",
    "row_layout",
    "rows_decode",
    "rows_encode",
    "rows_range",
    "run_bytes",
]

SMALLEST_STEP = 2.0**-126  # the smallest normal 32-bit float: its inverse is one as well
_LARGEST_MAGNITUDE = 2.0**126  # twice of it, a range, is still a 32-bit float
_TILE = 256  # elements of a row that kernels pack together: a row may be cut between them
_SHORT = 16  # elements that must lie side by side so that kernels read them where they are
_PARTS, _LARGEST_PIECE = 8, 2**17
_ODD = 0x9E3779B97F4A7C15


def row_layout(shape: Sequence[int], stride: Sequence[int], dim: int) -> RowLayout:
    """The layout in which dimension `dim` of a dense tensor is the rows.

    >>> row_layout((8, 3, 4, 4), (48, 1, 12, 3), 1)
    RowLayout(outer=128, rows=3, cols=1)
    """
    if shape[dim] == 1:
        return RowLayout(1, 1, numel_of(shape))
    cols = math.prod(n for n, s in zip(shape, stride, strict=True) if n > 1 and s < stride[dim])
    return RowLayout(numel_of(shape) // (cols * shape[dim]), shape[dim], cols)


def round_down(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of a 16-bit type that are not above these, which lie in its range."""
    nearest = numbers.to(dtype)
    return torch.where(nearest > numbers, torch.nextafter(nearest, nearest.new_tensor(-math.inf)), nearest)


def round_up(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest numbers of a 16-bit type that are not below these, which lie in its range."""
    return -round_down(-numbers, dtype)


def refusal(name: str, x: Tensor) -> FedHybridError:
    """What a codec raises for numbers that it cannot store."""
    return FedHybridError(
        f"the codec {name!r} stores finite numbers below 8.5e37; a {x.dtype} tensor of shape {list(x.shape)} holds "
        "nan, infinity or larger ones. The training has diverged (try a smaller learning rate), or keep this tensor."
    )


def rows_range(name: str, x: Tensor, layout: RowLayout) -> tuple[Tensor, Tensor, float]:
    """The smallest and the largest value of each row, 32-bit floats of shape (rows,), and the largest magnitude.

    Args:
        name: The codec's, for the error.
        x: Dense, with elements; 32- or 16-bit floats.
        layout: Of the tensor.

    Raises:
        FedHybridError: A magnitude is 2**126 or more, infinite or nan.
    """
    low, high = torch.empty(layout.rows), torch.empty(layout.rows)
    elements, finite = x.as_strided((x.numel(),), (1,)), True
    if kernels.available() and layout.cols > 1:
        finite = kernels.rows_range(elements, *layout, low, high)
    else:
        rows_plain.measure_range(elements, layout, low, high)
    magnitude = float(torch.maximum(-low, high).amax())
    if not finite or not magnitude < _LARGEST_MAGNITUDE:  # nan is not smaller either
        raise refusal(name, x)
    return low, high, magnitude


def rows_encode(  # noqa: PLR0917 - as the kernels take them
    x: Tensor,
    layout: RowLayout,
    bits: Tensor,
    low: Tensor,
    step: Tensor,
    offsets: Tensor,
    seed: int | None,
    out: Tensor,
    *,
    positive: bool = False,
) -> None:
    """Writes the code clip(floor((x - low) / step + u), 0, 2**bits - 1) of each element.

    u is uniform in [0, 1), or 0.5 where the seed is None. Any two elements' u are independent. (Of three that need not
    hold without compiled kernels: a few thousand numbers are drawn and shifted at random; millions take too long.)

    Args:
        x: Elements in memory order, shape (numel,), numel > 0; 32- or 16-bit floats.
        layout: Of the tensor.
        bits: Of each row: 1, 2, 4 or 8. Bytes, shape (rows,).
        low: 32-bit floats, shape (rows,).
        step: As `low`; SMALLEST_STEP or more.
        offsets: Where in `out` each row's run of `run_bytes` begins, 64-bit integers, shape (rows,). The runs of one
            width adjoin, in the order of the rows.
        seed: Of u.
        out: Bytes, contiguous.
        positive: What is not above 0 gets the code 0, whatever the range.
    """
    if not kernels.available():
        rows_plain.encode(x, layout, bits, low, step, offsets, seed, out, positive=positive)
    elif layout.cols >= _SHORT or layout.cols == 1:
        kernels.rows_encode(x, *layout, bits, low, step, offsets, seed, out, positive=positive)
    else:
        for piece in _pieces(x, layout, bits, offsets):
            _by_row(piece.held).copy_(_by_row(piece.part.transpose(0, 1)))
            own_seed = None if seed is None else (seed ^ piece.number * _ODD) % 2**63
            told = bits[piece.rows], low[piece.rows], step[piece.rows], piece.offsets
            kernels.rows_encode(piece.held, 1, len(piece.held), piece.length, *told, own_seed, out, positive=positive)


def rows_decode(  # noqa: PLR0917 - as the kernels take them
    code: Tensor, layout: RowLayout, bits: Tensor, low: Tensor, step: Tensor, offsets: Tensor, out: Tensor
) -> None:
    """Writes low + step * code of each element to `out`; see `rows_encode`."""
    if not kernels.available():
        rows_plain.decode(code, layout, bits, low, step, offsets, out)
    elif layout.cols >= _SHORT or layout.cols == 1:
        kernels.rows_decode(code, *layout, bits, low, step, offsets, out)
    else:
        for piece in _pieces(out, layout, bits, offsets):
            told = bits[piece.rows], low[piece.rows], step[piece.rows], piece.offsets
            kernels.rows_decode(code, 1, len(piece.held), piece.length, *told, piece.held)
            _by_row(piece.part).copy_(_by_row(piece.held.transpose(0, 1)))


class _Piece(NamedTuple):
    """Some lines or rows of a tensor: kernels walk along rows, so that rows with few neighbours in memory are copied.

    Attributes:
        number: From 0 on.
        rows: Which ones.
        part: Of the tensor, shape (lines, rows, cols).
        held: Scratch memory, shape (rows, lines, cols), contiguous.
        offsets: Where the numbers of each row begin.
    """

    number: int
    rows: slice
    part: Tensor
    held: Tensor
    offsets: Tensor

    @property
    def length(self) -> int:
        """Elements of each of its rows."""
        return self.held.shape[1] * self.held.shape[2]


def _pieces(x: Tensor, layout: RowLayout, bits: Tensor, offsets: Tensor) -> Iterator[_Piece]:
    outer, rows, cols = layout
    lines, group = outer, -(-rows // _PARTS)
    if outer >= _PARTS * _TILE:
        lines, group = max(1, min(outer // _PARTS, _LARGEST_PIECE // (rows * cols)) // _TILE) * _TILE, rows
    scratch, number = torch.empty(lines * group * cols, dtype=x.dtype), 0
    for line in range(0, outer, lines):
        for row in range(0, rows, group):
            some = slice(row, min(rows, row + group))
            part = x.view(layout)[line : line + lines, some]
            held = scratch[: part.numel()].view(part.shape[1], part.shape[0], cols)
            yield _Piece(number, some, part, held, offsets[some] + bits[some].long() * (line * cols // 8))
            number += 1


def _by_row(x: Tensor) -> Tensor:
    """Without the last dimension where that has one element: torch is fast at matrices."""
    return x.squeeze(2)
