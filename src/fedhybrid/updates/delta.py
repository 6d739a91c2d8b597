"""The difference to the model that the client started from, which is small where the tensors themselves are not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedhybrid.updates.base import FLOATS, Context, Form, Piece, Pieces

__all__ = ["Delta"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@final
@dataclass(frozen=True, kw_only=True)
class Delta:
    """Sends the difference to the reference; the receiver, who has the reference too, adds it back.

    Error: the rounding of one subtraction and one addition. Integers wrap around and come back exactly; other types
    that are no floating point numbers (booleans) are sent themselves.
    """

    stage: ClassVar[int] = 0
    lossy: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """As in `TRANSFORMS`."""
        return "delta"

    @property
    def idle(self) -> bool:
        """Never."""
        return False

    def form(self, form: Form) -> Form:
        """The same."""
        return form

    def encode(self, pieces: Pieces, context: Context) -> Pieces:
        """See `Transform`."""
        return {name: _moved(piece, context.base[name], -1) for name, piece in pieces.items()}

    def decode(self, pieces: Pieces, context: Context) -> Pieces:
        """See `Transform`."""
        return {name: _moved(piece, context.base[name], 1) for name, piece in pieces.items()}


def _moved(piece: Piece, base: Tensor, sign: int) -> Piece:
    if piece.values.dtype not in (*FLOATS, *_INTEGERS):
        return piece
    return replace(piece, values=piece.values + base if sign > 0 else piece.values - base)
