"""FedHybrid's channel-wise mix: every channel has its own range, and its own width of 2, 4 or 8 bits.

Source: K. Tam, C. Tian, L. Li, H. Zhao, C. Xu, "FedHybrid: Breaking the Memory Wall of Federated Learning via Hybrid
Tensor Management", SenSys 2024, https://arxiv.org/abs/2510.11400
Follows: channel-wise mix compression. Its steps are not public; what stands here is ours: rounding is stochastic, the
expected squared error of a channel with range r in b bits is n r^2 / (6 (2^b - 1)^2), and `allocate` spends the bytes
where they lower the sum most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedhybrid.codecs.base import CodecState, flat_view, numel_of
from fedhybrid.codecs.lossy import FLOAT_TYPES, LossyCodec
from fedhybrid.codecs.rows import (
    SMALLEST_STEP,
    RowLayout,
    round_down,
    round_up,
    row_layout,
    rows_decode,
    rows_encode,
    rows_range,
    run_bytes,
)
from fedhybrid.errors import ConfigError

__all__ = ["WIDTHS", "ChannelMix", "allocate", "channel_mix"]

Numbers = npt.NDArray[Any]

WIDTHS = (2, 4, 8)

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_LEAST_ELEMENTS = 128  # channels of fewer share a range and a width with their neighbours
_FACTOR_BYTES = 4
_SMALLEST_HALF, _TARGET_EXPONENT = 2.0**-24, 15  # of 16-bit floats; values are scaled to below 2**15
_MARGIN = 2.0**-12  # of a step, between zeros and what is positive: above all rounding of 32-bit floats


@final
@dataclass(frozen=True, kw_only=True)
class ChannelMix:
    """Every channel has its own range, and its own width of 2, 4 or 8 bits.

    Error, with r the range and m the largest magnitude of a channel, b its width: at most the step, which is
    (1 + 2**-9) (r + 2**-10 m) / (2**b - 1) + 2**-38 M with M = largest magnitude of all, and unbiased but for rounding
    of 32-bit floats. `positive` has 2**b - 2.01 instead of 2**b - 1, at most 2**-10 of a step of bias, and an error of
    twice the type's smallest normal number on top. 16-bit types round once more.

    A state may hold "weights" in its facts: one number a channel, such as the mean square of the incoming gradient
    there, by which the channel's error counts.

    Attributes:
        mean_bits: Bits an element on average, 2 to 8; the code is as long as if all channels had that width.
        channel_dim: Which dimension is the channels; None for 1 in tensors of four and more dimensions and for the
            last one in others (tokens).
        refresh_steps: Encodings after which the widths are chosen again; ranges are new each time.
        positive: For tensors without negative elements (behind a ReLU): zeros stay zeros and what is positive stays
            positive, at no cost but one of the codes.
    """

    mean_bits: float = 4.0
    channel_dim: int | None = None
    refresh_steps: int = 50
    positive: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not WIDTHS[0] <= self.mean_bits <= WIDTHS[-1]:
            problems.append(f"mean_bits must be from {WIDTHS[0]} to {WIDTHS[-1]}, got {self.mean_bits}")
        if self.refresh_steps < 1:
            problems.append(f"refresh_steps must be 1 or more, got {self.refresh_steps}")
        if problems:
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return "channel-mix"

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """32- and 16-bit floating point numbers that have the dimension of the channels."""
        dim = self.channel_dim
        return dtype in FLOAT_TYPES and (dim is None or -len(shape) <= dim < len(shape))

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """All channels at the mean width, a range and two bits each, and one number."""
        rows = self._rows(shape)
        return self._runs_begin(rows) + self._budget_bytes(rows, numel_of(shape) // rows)

    def encode_into(self, code: Tensor, x: Tensor, state: CodecState) -> None:
        """See `LossyPart`.

        Raises:
            FedHybridError: A magnitude is 2**126 or more, infinite or nan.
        """
        layout = self._layout(x.shape, x.stride())
        lows, highs, magnitude = rows_range(self.name, x, layout)
        smallest = torch.finfo(x.dtype).tiny
        factor = _factor(magnitude, smallest)
        widths = self._widths(state, layout, (highs - lows).numpy() / max(magnitude, SMALLEST_STEP))
        runs = _runs(widths, layout, self._runs_begin(layout.rows))
        head = self._head(code, layout.rows)
        low, step, intervals = head.low, head.step, torch.exp2(runs.bits.float()) - 1
        least = max(_SMALLEST_HALF, SMALLEST_STEP * factor)
        if self.positive:
            low.zero_()
            step.copy_(round_up(highs * factor / (intervals - 1 - 2 * _MARGIN), torch.float16))
            step.clamp_min_(max(least, 2 * smallest * factor))
        else:
            low.copy_(round_down(lows * factor, torch.float16))
            step.copy_(round_up((highs * factor - low.float()) / intervals, torch.float16)).clamp_min_(least)
        head.factor.fill_(factor)
        head.widths.copy_(torch.from_numpy(_pack_widths(widths)))
        real_step = step.float() / factor
        start = real_step * -(1 + _MARGIN) if self.positive else low.float() / factor
        elements, seed = flat_view(x), state.next_seed()
        rows_encode(elements, layout, runs.bits, start, real_step, runs.offsets, seed, code, positive=self.positive)
        code[runs.end :] = 0

    def decode_into(self, out: Tensor, code: Tensor) -> None:
        """See `LossyPart`."""
        layout = self._layout(out.shape, out.stride())
        head = self._head(code, layout.rows)
        runs = _runs(_unpack_widths(head.widths.numpy(), layout.rows), layout, self._runs_begin(layout.rows))
        factor = float(head.factor)
        step = head.step.float() / factor
        start = head.low.float() / factor
        if self.positive:
            start = (step * _MARGIN).clamp_min_(torch.finfo(out.dtype).tiny) - step
        elements = flat_view(out)
        rows_decode(code, layout, runs.bits, start, step, runs.offsets, elements)
        if self.positive:
            elements.clamp_min_(0)

    def _rows(self, shape: Sequence[int]) -> int:
        """Ranges: one a channel, or a few channels where these have few elements."""
        if not shape or not numel_of(shape):
            return 1
        channels = shape[self._dim(shape)]
        each = numel_of(shape) // channels
        return next(channels // g for g in range(1, channels + 1) if channels % g == 0 and _enough(g, each, channels))

    def _dim(self, shape: Sequence[int]) -> int:
        if self.channel_dim is not None:
            return self.channel_dim % len(shape)
        return 1 if len(shape) > 3 else len(shape) - 1

    def _layout(self, shape: Sequence[int], stride: Sequence[int]) -> RowLayout:
        rows = self._rows(shape)
        if rows == 1:
            return RowLayout(1, 1, numel_of(shape))
        outer, channels, cols = row_layout(shape, stride, self._dim(shape))
        return RowLayout(outer, rows, channels // rows * cols)

    def _budget_bytes(self, rows: int, length: int) -> int:
        return rows * math.ceil(length * self.mean_bits / 8)

    def _widths(self, state: CodecState, layout: RowLayout, ranges: Numbers) -> Numbers:
        """The width of each row, chosen anew when the last choice is old."""
        widths, age = state.facts.get("widths"), state.facts.get("age", 0)
        if widths is None or len(widths) != layout.rows or age >= self.refresh_steps:
            weights = state.facts.get("weights")
            if weights is not None:  # neighbours that share a width count by their mean
                weights = np.asarray(weights, np.float64).reshape(layout.rows, -1).mean(1)
            budget_bytes = self._budget_bytes(layout.rows, layout.length)
            widths, age = allocate(ranges, weights, layout.length, budget_bytes, spare_codes=int(self.positive)), 0
        state.facts.update(widths=widths, age=age + 1)
        return widths

    @staticmethod
    def _runs_begin(rows: int) -> int:
        return _FACTOR_BYTES + 4 * rows + -(-rows // 4)

    def _head(self, code: Tensor, rows: int) -> _Head:
        low_end, step_end = _FACTOR_BYTES + 2 * rows, _FACTOR_BYTES + 4 * rows
        return _Head(
            code[:_FACTOR_BYTES].view(torch.float32),
            code[_FACTOR_BYTES:low_end].view(torch.float16),
            code[low_end:step_end].view(torch.float16),
            code[step_end : self._runs_begin(rows)],
        )


def allocate(
    ranges: Numbers, weights: Numbers | None, length: int, budget_bytes: int, *, spare_codes: int = 0
) -> Numbers:
    """Widths from `WIDTHS` that lower the weighted sum of expected squared errors most for their bytes.

    All rows begin at the smallest width; then the upgrade that lowers the error most for its bytes comes first. (A heap
    of upgrades gives the same: all rows are equally long, so an upgrade's merit never changes.)

    Args:
        ranges: Of each row.
        weights: What each row's error counts; None for equal ones.
        length: Elements a row.
        budget_bytes: At least what the smallest width needs.
        spare_codes: Codes that take no part.

    Returns:
        Bytes, shape (rows,).

    >>> allocate(np.array([1.0, 9.0, 0.1, 2.0]), None, 1000, 2000).tolist()
    [2, 8, 2, 4]
    """
    squares = np.asarray(ranges, np.float64) ** 2 * (1.0 if weights is None else weights)
    errors = [1 / (2**b - 1 - spare_codes) ** 2 for b in WIDTHS]
    costs = [run_bytes(length, b) for b in WIDTHS]
    extra = [after - before for before, after in pairwise(costs)]
    merits = np.concatenate([squares * (errors[i] - errors[i + 1]) / max(extra[i], 1e-3) for i in range(2)])
    widths, left = np.full(len(squares), WIDTHS[0], np.uint8), budget_bytes - costs[0] * len(squares)
    for upgrade in np.argsort(-merits, kind="stable").tolist():
        level, row = divmod(upgrade, len(squares))
        if widths[row] == WIDTHS[level] and extra[level] <= left:
            widths[row], left = WIDTHS[level + 1], left - extra[level]
    return widths


class _Head(NamedTuple):
    """What stands before the runs: the scale of the ranges, the ranges as 16-bit floats, two bits of width each."""

    factor: Tensor
    low: Tensor
    step: Tensor
    widths: Tensor


class _Runs(NamedTuple):
    bits: Tensor
    offsets: Tensor
    end: int


def _runs(widths: Numbers, layout: RowLayout, begin: int) -> _Runs:
    """Where each row's run begins: those of one width side by side."""
    offsets = np.empty(layout.rows, np.int64)
    for width in WIDTHS:
        members, size = widths == width, run_bytes(layout.length, width)
        count = int(members.sum())
        offsets[members] = begin + size * np.arange(count)
        begin += size * count
    return _Runs(torch.from_numpy(widths), torch.from_numpy(offsets), begin)


def _pack_widths(widths: Numbers) -> Numbers:
    """Two bits each: 0, 1 or 2 for 2, 4 or 8 bits."""
    padded = np.zeros((-(-len(widths) // 4), 4), np.uint8)
    padded.reshape(-1)[: len(widths)] = widths // 4
    packed: Numbers = np.bitwise_or.reduce(padded << _SHIFTS, axis=1)
    return packed


def _unpack_widths(packed: Numbers, rows: int) -> Numbers:
    numbers = (packed[:, None] >> _SHIFTS & 3).reshape(-1)[:rows]
    widths: Numbers = np.array(WIDTHS, np.uint8)[numbers]
    return widths


def _enough(group: int, each: int, channels: int) -> bool:
    return group * each >= _LEAST_ELEMENTS or group == channels


def _factor(magnitude: float, smallest: float) -> float:
    """The power of two that brings the largest magnitude close to the end of the 16-bit floats."""
    largest = min(126, _TARGET_EXPONENT - 2 - math.frexp(smallest)[1])
    return math.ldexp(1.0, min(largest, _TARGET_EXPONENT - math.frexp(magnitude)[1]) if magnitude else largest)


def channel_mix(
    *,
    mean_bits: float = 4.0,
    channel_dim: int | None = None,
    refresh_steps: int = 50,
    gates: tuple[float, float] | None = None,
    clamped: bool = False,
) -> LossyCodec:
    """A range and a width of 2, 4 or 8 bits for each channel, 4 on average (FedHybrid), with exact gates if asked.

    Args:
        mean_bits: See `ChannelMix`.
        channel_dim: See `ChannelMix`.
        refresh_steps: See `ChannelMix`.
        gates: See `LossyCodec`.
        clamped: Whether nothing ever lies beyond the gates; a gate at 0 then takes no bit.
    """
    positive = clamped and gates is not None and gates[0] == 0
    if positive and gates is not None:
        gates = (-math.inf, gates[1]) if math.isfinite(gates[1]) else None
    part = ChannelMix(
        mean_bits=mean_bits, channel_dim=channel_dim, refresh_steps=refresh_steps, positive=positive
    )  # fmt: skip
    return LossyCodec(part, gates)
