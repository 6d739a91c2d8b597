"""The tensor itself, byte for byte: what every other codec is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedhybrid.codecs.base import CodecState, empty_dense, flat_view, numel_of

__all__ = ["Identity"]


@final
@dataclass(frozen=True)
class Identity:
    """The tensor itself, byte for byte, in a buffer of its own."""

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return "identity"

    @property
    def lossless(self) -> bool:
        """Always."""
        return True

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """Every real type."""
        return not dtype.is_complex

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """As many as the tensor has."""
        return numel_of(shape) * dtype.itemsize

    def encode(self, x: Tensor, state: CodecState | None = None) -> Tensor:
        """See `Codec`."""
        return flat_view(x).view(torch.uint8).clone()

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        out = empty_dense(like_shape, like_stride, dtype)
        flat_view(out).view(torch.uint8).copy_(code)
        return out
