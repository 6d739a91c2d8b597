"""Smaller forms of tensors that autograd saves, without loss: truth values as bits, indices as narrow integers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["CHANGED", "pack_saved", "packing", "unpack_saved"]

CHANGED = "modified by an inplace operation"  # in PyTorch's words

_LEAST_ELEMENTS = 1024  # smaller tensors are not worth the calls
_BIT_VALUES = (1, 2, 4, 8, 16, 32, 64, 128)


@final
@dataclass(frozen=True)
class _Packed:
    """`data` stands for a tensor of this shape and type; bits are eight to a byte, in the order of the elements."""

    data: Tensor
    shape: torch.Size
    dtype: torch.dtype


def pack_saved(tensor: Tensor) -> Tensor | _Packed:
    """The tensor in a smaller form, or itself where there is none."""
    if tensor.numel() < _LEAST_ELEMENTS or not tensor.is_contiguous():
        return tensor
    if tensor.dtype is torch.bool:
        flat = tensor.flatten().view(torch.uint8)
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)) if flat.numel() % 8 else flat
        bits = torch.zeros(flat.numel() // 8, dtype=torch.uint8)
        for column, value in zip(flat.view(-1, 8).unbind(1), _BIT_VALUES, strict=True):
            bits.add_(column, alpha=value)
        return _Packed(bits, tensor.shape, tensor.dtype)
    if tensor.dtype is torch.int64:
        low, high = (int(bound) for bound in torch.aminmax(tensor))
        for narrow in (torch.uint8, torch.int16, torch.int32):
            if torch.iinfo(narrow).min <= low and high <= torch.iinfo(narrow).max:
                return _Packed(tensor.to(narrow), tensor.shape, tensor.dtype)
    return tensor


def unpack_saved(packed: Tensor | _Packed) -> Tensor:
    """What `pack_saved` was given, bit for bit.

    >>> x = torch.arange(2001) % 3 == 0
    >>> torch.equal(unpack_saved(pack_saved(x)), x)
    True
    """
    if isinstance(packed, Tensor):
        return packed
    if packed.dtype is not torch.bool:
        return packed.data.to(packed.dtype)
    flat = torch.empty((packed.data.numel(), 8), dtype=torch.bool)
    for column, value in zip(flat.unbind(1), _BIT_VALUES, strict=True):
        torch.ne(packed.data & value, 0, out=column)
    return flat.flatten()[: packed.shape.numel()].view(packed.shape)


@final
@dataclass(frozen=True)
class _Kept:
    """A tensor as it was when autograd saved it; PyTorch does not check that by itself inside such a context."""

    tensor: Tensor
    version: int


def packing(resident: Collection[int]) -> torch.autograd.graph.saved_tensors_hooks:
    """A context in which autograd saves tensors packed.

    A backward pass raises what PyTorch raises if a saved tensor was changed in place meanwhile.

    Args:
        resident: Addresses of memory that lives anyway; a packed copy of it would only cost.
    """

    def pack(tensor: Tensor) -> _Packed | _Kept:
        lives = tensor.untyped_storage().data_ptr() in resident
        packed = tensor if lives else pack_saved(tensor)
        return _Kept(packed, packed._version) if isinstance(packed, Tensor) else packed

    def unpack(saved: _Packed | _Kept) -> Tensor:
        if isinstance(saved, _Packed):
            return unpack_saved(saved)
        if saved.tensor._version != saved.version:
            raise RuntimeError(
                f"one of the variables needed for gradient computation has been {CHANGED}: "
                f"{saved.tensor.dtype} {list(saved.tensor.shape)}"
            )
        return saved.tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
