"""A small bidirectional transformer that classifies a window of text.

After J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", NAACL 2019, https://arxiv.org/abs/1810.04805: token embeddings plus learnt positions, blocks in which
each token sees all others, GELU, and a learnt token of the classifier, whose last state the head reads.
Differs: small; trained on labels alone, without the paper's pre-training on masked words; pre-norm blocks and a last
normalisation, where the paper normalises after each residual and after the embeddings; one text, so no segments; no
layer between the last state and the head; linear layers start as torch draws them, tables with the paper's deviation of
0.02; no dropout unless asked. The classifier's token stands behind the text, not before it: only the learnt positions
know of an order, and so the last block can work out that token alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.parts import require_shape
from fedhybrid.models.transformer import Block, dropout_layer, size_problems

__all__ = ["Bert"]

_INITIAL_DEVIATION = 0.02


class Bert(nn.Module):
    """Bidirectional transformer; maps (b, t) of numbers below `tokens` to (b, classes); t is fixed."""

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        tokens: int,
        depth: int = 2,
        dim: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        (length,) = require_shape("bert", input_shape, tokens=1)
        if problems := size_problems("bert", depth=depth, dim=dim, heads=heads, dropout=dropout):
            raise ConfigError(problems)
        self.embedding = nn.Embedding(tokens, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, length + 1, dim))
        for table in (self.embedding.weight, self.class_token, self.positions):
            nn.init.normal_(table, std=_INITIAL_DEVIATION)
        self.dropout = dropout_layer(dropout)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, 4 * dim, dropout, last_only=number == depth - 1) for number in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return in_order(self.ordered(), x)

    def ordered(self) -> list[Part]:
        """The embedding, each block, the head with the last normalisation before it."""
        return [
            Part(name="embedding", holds=("embedding", "class_token", "positions", "dropout"), run=self._embedded),
            *(Part(name=f"blocks.{i}", holds=(f"blocks.{i}",), run=block) for i, block in enumerate(self.blocks)),
            Part(name="head", holds=("norm", "head"), run=lambda t: self.head(self.norm(t[:, -1]))),
        ]

    def _embedded(self, x: Tensor) -> Tensor:
        t = torch.cat([self.embedding(x), self.class_token.expand(x.shape[0], -1, -1)], dim=1)
        return self.dropout(t + self.positions)  # type: ignore[no-any-return]
