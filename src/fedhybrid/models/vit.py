"""A small vision transformer for small images.

Source: A. Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
https://arxiv.org/abs/2010.11929; width and heads of DeiT-Ti (H. Touvron et al., ICML 2021).
Differs: patches of 4 x 4; the mean over tokens by default (`token="class"` for the paper's extra token); no dropout
unless asked. 5.4 million parameters at 3x32x32 and 10 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.errors import ConfigError

__all__ = ["Vit"]


def _dropout(ratio: float) -> nn.Module:
    return nn.Dropout(ratio) if ratio else nn.Identity()


class _Attention(nn.Module):
    """Multi-head self-attention over (b, t, d)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout_ratio = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        ratio = self.dropout_ratio if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=ratio)
        return self.out(y.transpose(1, 2).reshape(b, t, d))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), _dropout(dropout), nn.Linear(hidden, dim))
        self.dropout = _dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        y: Tensor = self.dropout(self.mlp(self.norm2(x)))
        return x + y


class Vit(nn.Module):
    """Vision transformer; maps (b, c, h, w) to (b, classes), with h and w multiples of `patch`."""

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        depth: int = 12,
        dim: int = 192,
        heads: int = 3,
        patch: int = 4,
        token: str = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        problems = []
        if patch < 1 or height % patch or width % patch:
            problems.append(f"model 'vit' cuts images into {patch} x {patch} patches; {height} x {width} do not divide")
        if min(depth, dim, heads) < 1 or dim % heads:
            problems.append(
                f"model 'vit': depth, dim, heads must be positive and heads divide dim: {depth, dim, heads}"
            )
        if token not in ("mean", "class"):
            problems.append(f"model option token must be 'mean' or 'class', got {token!r}")
        if not 0 <= dropout < 1:
            problems.append(f"model option dropout must be in [0, 1), got {dropout}")
        if problems:
            raise ConfigError(problems)
        tokens = (height // patch) * (width // patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if token == "class" else None
        self.positions = nn.Parameter(torch.zeros(1, tokens + (token == "class"), dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.dropout = _dropout(dropout)
        self.blocks = nn.Sequential(*(_Block(dim, heads, 4 * dim, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        t = self.patches(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            t = torch.cat([self.class_token.expand(t.shape[0], -1, -1), t], dim=1)
        t = self.norm(self.blocks(self.dropout(t + self.positions)))
        return self.head(t.mean(dim=1) if self.class_token is None else t[:, 0])  # type: ignore[no-any-return]
