"""Sixteen bits an element: 32-bit floats become bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedhybrid.codecs.base import CodecState, flat_view, numel_of
from fedhybrid.codecs.lossy import FLOAT_TYPES, LossyCodec

__all__ = ["BFloat16", "bf16"]


@final
@dataclass(frozen=True)
class BFloat16:
    """Sixteen bits an element: 32-bit floats are rounded to the nearest bfloat16, 16-bit types pass as they are.

    Error: at most 2**-8 of each element's magnitude, 2**-134 below 2**-126. Nan stays nan and infinity infinity;
    magnitudes above 3.3895e38 become infinity.
    """

    @property
    def name(self) -> str:
        """As in `CODECS`."""
        return "bf16"

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """32- and 16-bit floating point numbers."""
        return dtype in FLOAT_TYPES

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Two an element."""
        return 2 * numel_of(shape)

    def encode_into(self, code: Tensor, x: Tensor, state: CodecState) -> None:
        """See `LossyPart`."""
        code.view(self._stored(x.dtype)).copy_(flat_view(x))

    def decode_into(self, out: Tensor, code: Tensor) -> None:
        """See `LossyPart`."""
        flat_view(out).copy_(code.view(self._stored(out.dtype)))

    @staticmethod
    def _stored(dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if dtype == torch.float32 else dtype


def bf16(gates: tuple[float, float] | None = None) -> LossyCodec:
    """32-bit floats rounded to bfloat16 (half the bytes), with exact gates if asked."""
    return LossyCodec(BFloat16(), gates)
