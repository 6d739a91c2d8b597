"""`torch.utils.checkpoint` as people set it by hand: round each block, every two blocks, or about sqrt(n) segments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed"]


class Segment(nn.Module):
    """Neighbouring blocks whose inside is dropped after the forward pass and computed again in the backward pass.

    A second forward pass updates batch norm's running statistics a second time: that is how checkpoint works.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, checkpoint(self.blocks, x, use_reentrant=False, preserve_rng_state=False))


def checkpointed(model: nn.Module, group: int | None) -> tuple[nn.Module, int, int]:
    """Wraps the blocks of the model's trunk, in place.

    Args:
        model: Its trunk is the `nn.Sequential` with most composite children, which are the blocks.
        group: Blocks in a segment; None for the square root of their number.

    Returns:
        The model, the number of blocks, and how many are in a segment.
    """
    trunks = [m for m in model.modules() if isinstance(m, nn.Sequential)]
    trunk = max(trunks, key=lambda m: sum(map(_is_block, m)))
    blocks = sum(map(_is_block, trunk))
    group = group or round(math.sqrt(blocks))
    children: list[Any] = []
    for child in list(trunk):
        if not _is_block(child):
            children.append(child)
        elif children and isinstance(children[-1], list) and len(children[-1]) < group:
            children[-1].append(child)
        else:
            children.append([child])
    wrapped = [Segment(child) if isinstance(child, list) else child for child in children]
    for name in [name for name, _ in trunk.named_children()]:
        delattr(trunk, name)
    for number, child in enumerate(wrapped):
        trunk.add_module(str(number), child)
    return model, blocks, group


def _is_block(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
