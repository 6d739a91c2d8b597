"""A small decoder-only transformer that guesses the next character of a window of text.

After A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2): learnt positions, causal
pre-norm blocks, a last normalisation, embedding and positions drawn with deviation 0.02.
Differs: small; characters for tokens; only the last position is asked for its next character, as the data sets of
windows have one label each, and so the last block works out that position alone; the head has its own weights, and
linear layers, those before a residual too, start as torch draws them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.parts import require_shape
from fedhybrid.models.transformer import Block, dropout_layer, size_problems

__all__ = ["CharGpt"]

_INITIAL_DEVIATION = 0.02


class CharGpt(nn.Module):
    """Causal transformer; maps (b, t) of characters, numbers below `tokens`, to scores (b, classes); t is fixed."""

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
        (characters,) = require_shape("char-gpt", input_shape, characters=1)
        if problems := size_problems("char-gpt", depth=depth, dim=dim, heads=heads, dropout=dropout):
            raise ConfigError(problems)
        self.embedding = nn.Embedding(tokens, dim)
        self.positions = nn.Parameter(torch.zeros(1, characters, dim))
        for table in (self.embedding.weight, self.positions):
            nn.init.normal_(table, std=_INITIAL_DEVIATION)
        self.dropout = dropout_layer(dropout)
        self.blocks = nn.Sequential(
            *(
                Block(dim, heads, 4 * dim, dropout, causal=True, last_only=number == depth - 1)
                for number in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each character as the next one."""
        return in_order(self.ordered(), x)

    def ordered(self) -> list[Part]:
        """The embedding, each block, the head with the last normalisation before it."""
        return [
            Part(
                name="embedding",
                holds=("embedding", "positions", "dropout"),
                run=lambda x: self.dropout(self.embedding(x) + self.positions),
            ),
            *(Part(name=f"blocks.{i}", holds=(f"blocks.{i}",), run=block) for i, block in enumerate(self.blocks)),
            Part(name="head", holds=("norm", "head"), run=lambda t: self.head(self.norm(t[:, -1]))),
        ]
