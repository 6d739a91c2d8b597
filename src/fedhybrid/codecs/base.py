"""What a codec is: a tensor becomes one run of bytes of known length, and comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch
from torch import Tensor

from fedhybrid.seeds import derive_seed

__all__ = ["Codec", "CodecState", "empty_dense", "flat_view", "numel_of", "spans"]

_LARGEST_SPAN, _SMALLEST_SPAN, _SPANS = 2**17, 2**15, 8


@final
@dataclass
class CodecState:
    """What a codec remembers about one tensor from step to step, and its own stream of random numbers.

    It belongs to one device and one compiled step: it is no part of the model, so no federation averages or sends it.

    Attributes:
        seed: Of the stream; equal seeds give equal bytes for equal tensors in equal order.
        calls: Encodings so far.
        facts: What the codec keeps, by name, in plain Python or numpy (a few bytes a channel, in no tensor's memory).
    """

    seed: int = 0
    calls: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def next_seed(self) -> int:
        """The seed of this encoding, in [0, 2**63); another one at each call."""
        self.calls += 1
        return derive_seed(self.seed, purpose="codec", round_index=self.calls)


class Codec(Protocol):
    """Stores a tensor in fewer bytes between its last use in the forward and its first in the backward pass.

    A codec is its options alone; what it must remember between steps lies in a `CodecState`. Both directions work a
    part of the tensor at a time, so that what they need beside input and output is small.
    """

    @property
    def name(self) -> str:
        """As in plans and in `CODECS`."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""
        ...

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """Whether tensors of this shape and type can be encoded."""
        ...

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Length of the code, known before there is a tensor."""
        ...

    def encode(self, x: Tensor, state: CodecState | None = None) -> Tensor:
        """The code of `x`: contiguous bytes, shape (encoded_bytes,).

        Args:
            x: Any accepted shape, dense: a permutation of a contiguous tensor.
            state: Of this tensor in this step; None is a fresh one.

        Raises:
            FedHybridError: The values cannot be represented (see each codec).
        """
        ...

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape, strides and type; what it needs stands in the code, whatever the state is by now."""
        ...


def numel_of(shape: Sequence[int]) -> int:
    """Elements of a tensor of this shape."""
    return math.prod(shape)


def flat_view(x: Tensor) -> Tensor:
    """The elements of a dense tensor in memory order, shape (numel,); no copy."""
    return x.as_strided((x.numel(),), (1,))


def empty_dense(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for a dense tensor."""
    return torch.empty_strided(tuple(shape), tuple(stride), dtype=dtype)


def spans(numel: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each span; all but the last have `span_elements(numel)` elements.

    >>> [end - begin for begin, end in spans(70_000)]
    [32768, 32768, 4464]
    """
    size = span_elements(numel)
    for begin in range(0, numel, size):
        yield begin, min(begin + size, numel)


def span_elements(numel: int) -> int:
    """Elements that are worked on at once: a power of two, an eighth of the tensor where that is a sensible amount."""
    wanted = 1 << max(0, (numel // _SPANS).bit_length() - 1)
    return min(_LARGEST_SPAN, max(_SMALLEST_SPAN, wanted))
