"""A small vision transformer for small images.

Source: A. Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
https://arxiv.org/abs/2010.11929; width and heads of DeiT-Ti (H. Touvron et al., ICML 2021).
Differs: patches of 4 x 4; the mean over tokens by default (`token="class"` for the paper's extra token); no dropout
unless asked. 5.4 million parameters at 3x32x32 and 10 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.parts import require_image
from fedhybrid.models.transformer import Block, dropout_layer, size_problems

__all__ = ["Vit"]


class Vit(nn.Module):
    """Vision transformer; maps (b, c, h, w) to (b, classes), with h and w multiples of `patch`."""

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        depth: int = 12,
        dim: int = 192,
        heads: int = 3,
        patch: int = 4,
        token: str = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = require_image("vit", input_shape, least_side=1)
        problems = []
        if patch < 1 or height % patch or width % patch:
            problems.append(f"model 'vit' cuts images into {patch} x {patch} patches; {height} x {width} do not divide")
        if token not in ("mean", "class"):
            problems.append(f"model option token must be 'mean' or 'class', got {token!r}")
        problems += size_problems("vit", depth=depth, dim=dim, heads=heads, dropout=dropout)
        if problems:
            raise ConfigError(problems)
        self.reads_class_token = token == "class"
        tokens = (height // patch) * (width // patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if token == "class" else None
        self.positions = nn.Parameter(torch.zeros(1, tokens + (token == "class"), dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.dropout = dropout_layer(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, 4 * dim, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return in_order(self.ordered(), x)

    def ordered(self) -> list[Part]:
        """The embedding of patches, each block, the head with the last normalisation before it."""
        return [
            Part(name="embedding", holds=("patches", "class_token", "positions", "dropout"), run=self._embedded),
            *(Part(name=f"blocks.{i}", holds=(f"blocks.{i}",), run=block) for i, block in enumerate(self.blocks)),
            Part(name="head", holds=("norm", "head"), run=self._scores),
        ]

    def _embedded(self, x: Tensor) -> Tensor:
        t: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            t = torch.cat([self.class_token.expand(t.shape[0], -1, -1), t], dim=1)
        return self.dropout(t + self.positions)  # type: ignore[no-any-return]

    def _scores(self, t: Tensor) -> Tensor:
        t = self.norm(t)
        return self.head(t[:, 0] if self.reads_class_token else t.mean(dim=1))  # type: ignore[no-any-return]
