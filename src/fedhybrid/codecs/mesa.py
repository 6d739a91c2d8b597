"""Mesa: eight bits an element, with a range for each attention head that follows the training.

Source: Z. Pan, P. Chen, H. He, J. Liu, J. Cai, B. Zhuang, "Mesa: A Memory-saving Training Framework for Transformers",
2021, https://arxiv.org/abs/2111.11124
Follows: the quantiser of section 3 (ranges as running averages, stochastic rounding), per saved tensor.
Differs: numbers beyond the running range are clamped (the released code lets them overflow), and the range that was
used is stored with the code (there, backward reads the newest one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from fedhybrid.codecs.base import CodecState, flat_view, numel_of
from fedhybrid.codecs.lossy import FLOAT_TYPES, LossyCodec
from fedhybrid.codecs.rows import SMALLEST_STEP, RowLayout, row_layout, rows_decode, rows_encode, rows_range
from fedhybrid.errors import ConfigError

__all__ = ["Mesa", "mesa"]

_RANGE_BYTES = 8  # of each group: range and lowest value, 32-bit floats


@final
@dataclass(frozen=True, kw_only=True)
class Mesa:
    """Eight bits an element, with a running range for each group of channels.

    The groups are slices of the channels, which are dimension 1 of tensors of four and more dimensions (the heads of
    [batch, heads, tokens, width], the channels of [batch, channels, height, width]) and the last of all others.

    Error: within the running range at most r / 255 + 2**-22 m, with r that range and m the largest magnitude of both
    range and tensor, and unbiased; what lies beyond is moved to its edge first. In the first encoding nothing lies
    beyond. 16-bit types round once more.

    Attributes:
        groups: Heads of the block (3 in DeiT-Ti); the largest number not above it that divides the channels is used.
        decay: What a range keeps of its past at each encoding; the new range is in use at once.
    """

    groups: int = 3
    decay: float = 0.9

    def __post_init__(self) -> None:
        problems = []
        if self.groups < 1:
            problems.append(f"groups must be 1 or more, got {self.groups}")
        if not 0 <= self.decay < 1:
            problems.append(f"decay must be from 0 to below 1, got {self.decay}")
        if problems:
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return "mesa"

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """32- and 16-bit floating point numbers."""
        return dtype in FLOAT_TYPES

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """One an element and eight a group."""
        return numel_of(shape) + _RANGE_BYTES * self._groups(shape)

    def encode_into(self, code: Tensor, x: Tensor, state: CodecState) -> None:
        """See `LossyPart`.

        Raises:
            FedHybridError: A magnitude is 2**126 or more, infinite or nan.
        """
        layout = self._layout(x.shape, x.stride())
        low, high, _ = rows_range(self.name, x, layout)
        kept = code[: _RANGE_BYTES * layout.rows].view(torch.float32).view(2, layout.rows)
        kept.copy_(torch.from_numpy(self._follow(state, torch.stack((high - low, low)).numpy())))
        bits, offsets = self._runs(layout)
        rows_encode(flat_view(x), layout, bits, kept[1], _step(kept), offsets, state.next_seed(), code)

    def decode_into(self, out: Tensor, code: Tensor) -> None:
        """See `LossyPart`."""
        layout = self._layout(out.shape, out.stride())
        kept = code[: _RANGE_BYTES * layout.rows].view(torch.float32).view(2, layout.rows)
        bits, offsets = self._runs(layout)
        rows_decode(code, layout, bits, kept[1], _step(kept), offsets, flat_view(out))

    def _follow(self, state: CodecState, found: np.ndarray) -> np.ndarray:
        """The running (range, lowest value) of each group, shape (2, groups), after this tensor's."""
        before = state.facts.get("ranges")
        if before is not None and before.shape == found.shape:
            found = np.float32(self.decay) * before + np.float32(1 - self.decay) * found
        state.facts["ranges"] = found.copy()  # not in memory that torch counts
        return found

    def _groups(self, shape: Sequence[int]) -> int:
        channels = shape[_channel_dim(shape)] if shape else 1
        return next(g for g in range(max(1, min(self.groups, channels)), 0, -1) if channels % g == 0)

    def _layout(self, shape: Sequence[int], stride: Sequence[int]) -> RowLayout:
        groups = self._groups(shape)
        if groups == 1:
            return RowLayout(1, 1, numel_of(shape))
        outer, channels, cols = row_layout(shape, stride, _channel_dim(shape))
        return RowLayout(outer, groups, channels // groups * cols)

    @staticmethod
    def _runs(layout: RowLayout) -> tuple[Tensor, Tensor]:
        """Width of each group, and where its numbers begin."""
        offsets = torch.arange(layout.rows) * layout.length + _RANGE_BYTES * layout.rows
        return torch.full((layout.rows,), 8, dtype=torch.uint8), offsets


def _channel_dim(shape: Sequence[int]) -> int:
    return 1 if len(shape) > 3 else len(shape) - 1


def _step(kept: Tensor) -> Tensor:
    return (kept[0] / 255).clamp_min_(SMALLEST_STEP)


def mesa(
    *, groups: int = 3, decay: float = 0.9, gates: tuple[float, float] | None = None, clamped: bool = False
) -> LossyCodec:
    """Eight bits an element with a running range for each head (Mesa), with exact gates if asked.

    `clamped` is taken as every lossy codec takes it, and makes no difference.
    """
    return LossyCodec(Mesa(groups=groups, decay=decay), gates)
