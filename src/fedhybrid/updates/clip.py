"""An update scaled down to a largest norm, so that no client moves the model by more than that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.updates.base import FLOATS, Context, Form, Pieces

__all__ = ["Clip"]


@final
@dataclass(frozen=True, kw_only=True)
class Clip:
    """Scales all floating point numbers of the update together, where their L2 norm is larger than `max_norm`.

    The receiver gets what was scaled. Where the norm is no finite number nothing is changed, so that the receiver sees
    what is wrong with the update. Beyond float rounding the norm is never above `max_norm`.

    Attributes:
        max_norm: Of all tensors as one vector; of the difference where `delta` stands before.
    """

    max_norm: float

    stage: ClassVar[int] = 1
    lossy: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        number = isinstance(self.max_norm, (int, float)) and not isinstance(self.max_norm, bool)
        if not number or not 0 < self.max_norm < math.inf:
            raise ConfigError(f"clip: max_norm must be a positive number, got {self.max_norm!r}")

    @property
    def name(self) -> str:
        """As in `TRANSFORMS`."""
        return "clip"

    @property
    def idle(self) -> bool:
        """Never: what it does depends on the update."""
        return False

    def form(self, form: Form) -> Form:
        """The same."""
        return form

    def encode(self, pieces: Pieces, context: Context) -> Pieces:
        """See `Transform`."""
        norm = _norm(piece.values for piece in pieces.values() if piece.values.dtype in FLOATS)
        if not self.max_norm < norm < math.inf:
            return pieces
        factor = self.max_norm / norm
        return {
            name: replace(piece, values=piece.values * factor) if piece.values.dtype in FLOATS else piece
            for name, piece in pieces.items()
        }

    def decode(self, pieces: Pieces, context: Context) -> Pieces:
        """There is no way back."""
        return pieces


def _norm(many: Iterable[Tensor]) -> float:
    """The L2 norm of all, summed in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(values, dtype=torch.float64)) for values in many))
