"""A vision transformer that drops, at a few depths, the tokens at which its class token hardly looks.

Source: S. Sarkar, S. Kundu, K. Zheng, P. A. Beerel, "Block Selective Reprogramming for On-device Training of Vision
Transformers", CVPR 2024 workshops, https://arxiv.org/abs/2405.10951; the rule is that of Y. Liang et al., "Not All
Patches are What You Need: Expediting Vision Transformers via Token Reorganizations" (EViT), ICLR 2022.
Differs: where a keep ratio of 1 drops nothing, the block is the plain one, and no empty extra token joins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.transformer import Block
from fedhybrid.models.vit import Vit

__all__ = ["TokenDropVit", "dropped", "kept_tokens", "token_counts"]


def kept_tokens(tokens: int, keep_ratio: float) -> int:
    """How many of the tokens beside the class token stay; `tokens` counts it too."""
    return math.ceil(round(keep_ratio * (tokens - 1), 9))  # 0.55 of 20 is 11, whatever floats say


def token_counts(tokens: int, *, drops: int, keep_ratio: float, fuse: bool = True) -> list[int]:
    """Tokens before the first and after each of so many drops, class token and fused token included.

    >>> token_counts(197, drops=3, keep_ratio=0.5)
    [197, 100, 52, 28]
    """
    counts = [tokens]
    for _ in range(drops):
        kept = kept_tokens(counts[-1], keep_ratio)
        counts.append(counts[-1] if kept == counts[-1] - 1 else 1 + kept + fuse)
    return counts


def dropped(t: Tensor, scores: Tensor, keep: int, *, fuse: bool) -> Tensor:
    """The class token, the `keep` others of the highest scores, best first, and the rest added up by their scores.

    Args:
        t: Tokens, (b, t, d), the class token first.
        scores: Of the others, (b, t - 1); the rest's are not normalised again.
        keep: How many stay.
        fuse: Whether the rest goes on as one more token, or not at all.
    """
    d = t.shape[-1]
    order = scores.argsort(dim=1, descending=True, stable=True)
    first, others = t[:, :1], t[:, 1:]
    kept = others.gather(1, order[:, :keep, None].expand(-1, -1, d))
    if not fuse:
        return torch.cat([first, kept], dim=1)
    rest = others.gather(1, order[:, keep:, None].expand(-1, -1, d))
    extra = scores.gather(1, order[:, keep:])[:, None] @ rest
    return torch.cat([first, kept, extra], dim=1)


@final
class TokenDropVit(nn.Module):
    """A `Vit` with a class token, whose blocks `drop_at` drop tokens between attention and perceptron.

    It takes over the modules, so tensors have the same names.
    """

    def __init__(self, vit: nn.Module, *, drop_at: Sequence[int], keep_ratio: float, fuse: bool) -> None:
        """Checks that the model has a class token and these blocks.

        Args:
            vit: With its weights.
            drop_at: Numbers of blocks, from 0 on.
            keep_ratio: Of the tokens beside the class token, above 0 and at most 1.
            fuse: See `dropped`.

        Raises:
            ConfigError: It is no such model, or has too few blocks.
        """
        super().__init__()
        if not isinstance(vit, Vit) or not vit.reads_class_token:
            raise ConfigError(
                "dropping tokens needs model 'vit' with model_options.token = \"class\"; found "
                + ("token = 'mean'" if isinstance(vit, Vit) else f"a {type(vit).__name__}")
            )
        depth = len(vit.blocks)
        if outside := [number for number in drop_at if not 0 <= number < depth]:
            raise ConfigError(
                f"tokens can be dropped in blocks 0 to {depth - 1} of this model, found "
                f"{', '.join(map(str, outside))}; give others, or a larger model_options.depth"
            )
        self.patches, self.class_token, self.positions = vit.patches, vit.class_token, vit.positions
        self.dropout, self.blocks, self.norm, self.head = vit.dropout, vit.blocks, vit.norm, vit.head
        self.keep_ratio, self.fuse = keep_ratio, fuse
        self.drop_at = frozenset(drop_at)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return in_order(self.ordered(), x)

    def ordered(self) -> list[Part]:
        """The embedding of patches, each block, the head with the last normalisation before it."""
        return [
            Part(name="embedding", holds=("patches", "class_token", "positions", "dropout"), run=self._embedded),
            *(self._block(number) for number in range(len(self.blocks))),
            Part(name="head", holds=("norm", "head"), run=lambda t: self.head(self.norm(t)[:, 0])),
        ]

    def _block(self, number: int) -> Part:
        block, name = self.blocks[number], f"blocks.{number}"
        if number not in self.drop_at:
            return Part(name=name, holds=(name,), run=block)
        return Part(name=name, holds=(name,), run=lambda t: self._with_drop(block, t))  # type: ignore[arg-type]

    def _with_drop(self, block: Block, t: Tensor) -> Tensor:
        keep = kept_tokens(t.shape[1], self.keep_ratio)
        if keep == t.shape[1] - 1:
            return block(t)  # type: ignore[no-any-return]
        seen, scores = block.attention.with_first_scores(block.norm1(t))
        t = dropped(t + block.dropout(seen), scores, keep, fuse=self.fuse)
        y: Tensor = block.dropout(block.mlp(block.norm2(t)))
        return t + y

    def _embedded(self, x: Tensor) -> Tensor:
        t: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        assert self.class_token is not None
        t = torch.cat([self.class_token.expand(t.shape[0], -1, -1), t], dim=1)
        return self.dropout(t + self.positions)  # type: ignore[no-any-return]
