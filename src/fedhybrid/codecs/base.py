"""What a codec is: a tensor becomes one run of bytes of known length, and comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Codec", "empty_dense", "flat_view", "spans"]

_LARGEST_SPAN, _SMALLEST_SPAN, _SPANS = 2**17, 2**15, 8


class Codec(Protocol):
    """Stores a tensor in fewer bytes between its last use in the forward and its first in the backward pass.

    Both directions work on the elements in memory order, a span at a time, so that what they need beside input and
    output is small; the same tensor always gives the same bytes.
    """

    @property
    def name(self) -> str:
        """As in plans and in `CODECS`."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""
        ...

    def accepts(self, dtype: torch.dtype) -> bool:
        """Whether tensors of this type can be encoded."""
        ...

    def encoded_bytes(self, numel: int, dtype: torch.dtype) -> int:
        """Length of the code, known before there is a tensor."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """The code of `x`: contiguous bytes, shape (encoded_bytes,).

        Args:
            x: Any shape, dense: a permutation of a contiguous tensor.

        Raises:
            FedHybridError: The values cannot be represented (see each codec).
        """
        ...

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape, strides and type, its elements in the order in which they were encoded."""
        ...


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
