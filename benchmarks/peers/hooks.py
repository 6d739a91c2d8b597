"""Activations quantised as they are saved, with `torch.autograd.graph.saved_tensors_hooks` and torch's own kernels.

Every floating-point tensor that autograd saves is packed, contiguous copies of views too; parameters (and views of
them) are not, since they stay anyway. Rows of 256 elements share a scale and an offset, rounding is to the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

__all__ = ["quantised_step"]

GROUP = 256
LEAST = 4 * GROUP  # smaller tensors (statistics of norms) are left alone
_PACK = {8: torch.ops.quantized.embedding_bag_byte_prepack, 4: torch.ops.quantized.embedding_bag_4bit_prepack}
_UNPACK = {8: torch.ops.quantized.embedding_bag_byte_unpack, 4: torch.ops.quantized.embedding_bag_4bit_unpack}


@dataclass(frozen=True)
class Packed:
    """Rows of codes with their scales, and what they were."""

    rows: Tensor
    shape: torch.Size


def quantised_step(step: Callable[[], Tensor], model: nn.Module, bits: int) -> Callable[[], Tensor]:
    """The same step with saved tensors in `bits` (8 or 4) bits."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor | Packed:
        small = tensor.dtype != torch.float32 or tensor.numel() < LEAST
        if small or tensor.untyped_storage().data_ptr() in owned:
            return tensor
        flat = tensor.detach().reshape(-1)
        rows = F.pad(flat, (0, -flat.numel() % GROUP)).view(-1, GROUP) if flat.numel() % GROUP else flat.view(-1, GROUP)
        return Packed(_PACK[bits](rows.contiguous()), tensor.shape)

    def unpack(kept: Tensor | Packed) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return _UNPACK[bits](kept.rows).view(-1)[: kept.shape.numel()].view(kept.shape)

    def run() -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return step()

    return run
