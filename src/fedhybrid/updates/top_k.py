"""Only the largest magnitudes of each tensor are sent; the others count as zero.

Source: D. Alistarh et al., "The Convergence of Sparsified Gradient Methods", NeurIPS 2018,
https://arxiv.org/abs/1809.10505. The number of elements per tensor, ceil(ratio * d), and a bit map or indices,
whichever is smaller, are as in TEASQ-Fed (https://arxiv.org/abs/2312.15186) as we reconstruct it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray
from fedhybrid.updates.base import FLOATS, Context, Form, Piece, Pieces

__all__ = ["TopK", "largest_places"]

_INTEGERS = {4: torch.int32, 8: torch.int64}


@final
@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keeps the ceil(ratio * d) largest magnitudes of each tensor of d floating point numbers, exactly so many.

    Of equal magnitudes the first ones are kept; nan counts as larger than all. What is not kept is decoded to zero:
    the reference's value where `delta` stands before. Other tensors are kept whole.

    Attributes:
        ratio: Share that is kept, above 0, at most 1; as the decimal fraction that it is written as.
    """

    ratio: float

    stage: ClassVar[int] = 2
    lossy: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        number = isinstance(self.ratio, (int, float)) and not isinstance(self.ratio, bool)
        if not number or not 0 < self.ratio <= 1:
            raise ConfigError(f"top-k: ratio must be a number above 0, at most 1, got {self.ratio!r}")

    @property
    def name(self) -> str:
        """As in `TRANSFORMS`."""
        return "top-k"

    @property
    def idle(self) -> bool:
        """Where everything is kept."""
        return self.ratio == 1

    def form(self, form: Form) -> Form:
        """Fewer elements."""
        if form.dtype not in FLOATS:
            return form
        return replace(form, count=_share(self.ratio, form.count))

    def encode(self, pieces: Pieces, context: Context) -> Pieces:
        """See `Transform`."""
        return {name: _thinned(piece, context.forms[name].count) for name, piece in pieces.items()}

    def decode(self, pieces: Pieces, context: Context) -> Pieces:
        """See `Transform`."""
        return {name: _filled(piece) for name, piece in pieces.items()}


def largest_places(values: Tensor, count: int) -> IntArray:
    """Where the `count` largest magnitudes stand, ascending; of equal ones the first.

    Magnitudes are compared as integers: the bits of a floating point number without its sign are in its order.

    Args:
        values: 32- or 64-bit floats, shape (elements,).
        count: From 1 to elements - 1.
    """
    bits = values.contiguous().view(_INTEGERS[values.element_size()]).numpy()
    magnitudes = bits & np.iinfo(bits.dtype).max
    smallest = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    kept = magnitudes > smallest
    equal = np.flatnonzero(magnitudes == smallest)
    kept[equal[: count - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


def _share(ratio: float, total: int) -> int:
    """The share's elements; 0.07 of 100 is 7, though 0.07 * 100 > 7 in binary."""
    return math.ceil(Fraction(str(ratio)) * total)


def _thinned(piece: Piece, count: int) -> Piece:
    if count == piece.total:
        return piece
    places = largest_places(piece.values, count)
    return replace(piece, values=piece.values[torch.from_numpy(places)], places=places)


def _filled(piece: Piece) -> Piece:
    if piece.places is None:
        return piece
    values = torch.zeros(piece.total, dtype=piece.values.dtype)
    values[torch.from_numpy(piece.places)] = piece.values
    return replace(piece, values=values, places=None)
