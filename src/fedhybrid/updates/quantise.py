"""Evenly spaced levels between the smallest and the largest value of each tensor, few bits each.

Source: D. Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017,
https://arxiv.org/abs/1610.02132, for rounding at random that is right on average. The levels between minimum and
maximum with two floats a tensor are as in TEASQ-Fed (https://arxiv.org/abs/2312.15186) as we reconstruct it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.seeds import derive_seed
from fedhybrid.updates.base import FLOATS, Codes, Context, Form, Piece, Pieces
from fedhybrid.updates.wire import piece_bytes

__all__ = ["Quantise"]

_MOST_BITS, _NONE = 16, 32
_ROUNDINGS = ("stochastic", "nearest")
_SPAN = 2**16  # elements that are worked on at once, so that they stay in the processor's cache


@final
@dataclass(frozen=True, kw_only=True)
class Quantise:
    """Sends each floating point number as one of 2**bits levels, evenly from the tensor's smallest to its largest.

    Error, with step = (largest - smallest) / (2**bits - 1): at most step / 2 with rounding to nearest; less than step,
    and none on average, with stochastic rounding; plus the rounding of the tensor's own type. Tensors that would not
    get smaller, for example of one element, are sent as they are. Where something is not finite all of its tensor is
    decoded to nan, which no receiver can overlook.

    Attributes:
        bits: 1 to 16; 32 leaves the numbers as they are.
        rounding: "stochastic" (up or down at random, from the task's seed) or "nearest".
    """

    bits: int
    rounding: str = "stochastic"

    stage: ClassVar[int] = 3
    lossy: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        problems = []
        whole = isinstance(self.bits, int) and not isinstance(self.bits, bool)
        if not whole or not (1 <= self.bits <= _MOST_BITS or self.bits == _NONE):
            problems.append(
                f"quantise: bits must be a whole number from 1 to {_MOST_BITS}, or {_NONE} for none, got {self.bits!r}"
            )
        if self.rounding not in _ROUNDINGS:
            problems.append(f"quantise: rounding must be {' or '.join(map(repr, _ROUNDINGS))}, got {self.rounding!r}")
        if problems:
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        """As in `TRANSFORMS`."""
        return "quantise"

    @property
    def idle(self) -> bool:
        """With 32 bits."""
        return self.bits == _NONE

    def form(self, form: Form) -> Form:
        """Levels, where they take fewer bytes than the values."""
        if self.idle or form.dtype not in FLOATS:
            return form
        coded = replace(form, bits=self.bits)
        return coded if piece_bytes(coded) < piece_bytes(form) else form

    def encode(self, pieces: Pieces, context: Context) -> Pieces:
        """See `Transform`."""
        noise = None
        if self.rounding == "stochastic":
            noise = np.random.default_rng(derive_seed(context.seed, purpose="quantise"))
        return {
            name: piece if context.forms[name].bits is None else self._coded(piece, noise)
            for name, piece in pieces.items()
        }

    def decode(self, pieces: Pieces, context: Context) -> Pieces:
        """See `Transform`."""
        return {name: self._valued(piece) for name, piece in pieces.items()}

    def _coded(self, piece: Piece, noise: np.random.Generator | None) -> Piece:
        low, high = (float(bound) for bound in piece.values.aminmax())
        if not math.isfinite(high - low):
            low = high = math.nan
        numbers = self._numbers(piece.values, low, high, noise)
        return replace(piece, values=piece.values[:0], codes=Codes(numbers, low, high))

    def _numbers(self, values: Tensor, low: float, high: float, noise: np.random.Generator | None) -> NDArray[Any]:
        top = 2**self.bits - 1
        numbers = np.zeros(values.numel(), np.uint8 if self.bits <= 8 else np.uint16)
        if not (low < high and math.isfinite(top / (high - low))):
            return numbers
        for begin in range(0, len(numbers), _SPAN):
            span = values[begin : begin + _SPAN].to(torch.float64).numpy()
            span = (span - low) * (top / (high - low))
            span += 0.5 if noise is None else noise.random(len(span), dtype=np.float32)
            numbers[begin : begin + len(span)] = np.minimum(span, top, out=span)
        return numbers

    def _valued(self, piece: Piece) -> Piece:
        if piece.codes is None:
            return piece
        numbers, low, high = piece.codes
        step, dtype = (high - low) / (2**self.bits - 1), piece.values.dtype
        values = torch.empty(len(numbers), dtype=dtype)
        for begin in range(0, len(numbers), _SPAN):
            span = numbers[begin : begin + _SPAN] * np.float64(step)
            span += low
            values[begin : begin + len(span)] = torch.from_numpy(np.minimum(span, high, out=span))
        return replace(piece, values=values, codes=None)
