"""Small whole numbers, loss-free: indices below a known limit in as few bytes as that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedhybrid.codecs.base import CodecState, empty_dense, flat_view, numel_of, spans
from fedhybrid.errors import ConfigError, FedHybridError

__all__ = ["NarrowIntegers"]

_LARGEST_LIMIT = 2**31


@final
@dataclass(frozen=True, kw_only=True)
class NarrowIntegers:
    """Whole numbers from 0 to below a limit in one, two or four bytes each, loss-free.

    Attributes:
        limit: What every element is below; for the indices of a max pool, the positions of the map that it reads.
    """

    limit: int = 2**15

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= _LARGEST_LIMIT:
            raise ConfigError(f"limit must be from 1 to {_LARGEST_LIMIT}, got {self.limit}")

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return "narrow"

    @property
    def lossless(self) -> bool:
        """Always."""
        return True

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """64- and 32-bit integers."""
        return dtype in (torch.int64, torch.int32)

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """One, two or four an element, as the limit has it."""
        return self._stored.itemsize * numel_of(shape)

    def encode(self, x: Tensor, state: CodecState | None = None) -> Tensor:
        """See `Codec`.

        Raises:
            FedHybridError: Something in `x` is negative, or the limit or more.
        """
        elements = flat_view(x)
        code = torch.empty(self.encoded_bytes(x.shape, x.dtype), dtype=torch.uint8)
        stored = code.view(self._stored)
        for begin, end in spans(x.numel()):
            span = elements[begin:end]
            low, high = (int(bound) for bound in span.aminmax())
            if low < 0 or high >= self.limit:
                raise FedHybridError(
                    f"the codec 'narrow' was told of whole numbers from 0 to {self.limit - 1}; a {x.dtype} tensor of "
                    f"shape {list(x.shape)} holds {low if low < 0 else high}. Raise its limit, or keep this tensor."
                )
            stored[begin:end] = span
        return code

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        out = empty_dense(like_shape, like_stride, dtype)
        flat_view(out).copy_(code.view(self._stored))
        return out

    @property
    def _stored(self) -> torch.dtype:
        return torch.uint8 if self.limit <= 2**8 else torch.uint16 if self.limit <= 2**16 else torch.int32
