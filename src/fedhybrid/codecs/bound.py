"""A codec at work on one tensor of one compiled step: its options together with what it remembers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from fedhybrid.codecs.base import Codec, CodecState
from fedhybrid.seeds import derive_seed

__all__ = ["BoundCodec"]


@final
class BoundCodec:
    """Encodes and decodes one tensor step after step.

    Attributes:
        codec: The options.
        number: Of the tensor in its step; tensors of one step draw from different random streams.
        state: What has been remembered since the last `reset`.
    """

    def __init__(self, codec: Codec, number: int) -> None:
        self.codec, self.number = codec, number
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Forgets everything and starts a stream of random numbers that depends on the seed and the tensor alone."""
        self.state = CodecState(seed=derive_seed(seed, purpose=f"codec of tensor {self.number}"))

    def saved(self) -> CodecState:
        """A copy of what is remembered, to be assigned to `state` later."""
        return copy.deepcopy(self.state)

    def encode(self, x: Tensor) -> Tensor:
        """See `Codec`."""
        return self.codec.encode(x, self.state)

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Codec`."""
        return self.codec.decode(code, like_shape, like_stride, dtype)
