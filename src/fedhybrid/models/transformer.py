"""The block that our transformers share: pre-norm self-attention and a perceptron, each with a residual."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

__all__ = ["Block", "dropout_layer", "size_problems"]


def dropout_layer(ratio: float) -> nn.Module:
    """Dropout, or nothing where the ratio is 0."""
    return nn.Dropout(ratio) if ratio else nn.Identity()


def size_problems(model: str, *, depth: int, dim: int, heads: int, dropout: float) -> list[str]:
    """What is wrong with the sizes of a transformer, in words."""
    problems = []
    if min(depth, dim, heads) < 1 or dim % heads:
        problems.append(
            f"model {model!r}: depth, dim, heads must be positive and heads divide dim: {depth, dim, heads}"
        )
    if not 0 <= dropout < 1:
        problems.append(f"model option dropout must be in [0, 1), got {dropout}")
    return problems


class _Attention(nn.Module):
    """Multi-head self-attention over (b, t, d); see `Block` for the two switches."""

    def __init__(self, dim: int, heads: int, dropout: float, *, causal: bool, last_only: bool) -> None:
        super().__init__()
        self.heads = heads
        self.dropout_ratio = dropout
        self.causal = causal and not last_only  # all others are before the last token
        self.last_only = last_only
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.last_only:
            q, t = q[:, :, -1:], 1
        ratio = self.dropout_ratio if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=ratio, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(b, t, d))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block; maps (b, t, d) to the same shape.

    With `causal`, each token sees itself and those before it. With `last_only`, only the last token is worked out, from
    all: (b, 1, d), for a model's last block where nobody asks for the others.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        causal: bool = False,
        last_only: bool = False,
    ) -> None:
        super().__init__()
        self.last_only = last_only
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads, dropout, causal=causal, last_only=last_only)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), dropout_layer(dropout), nn.Linear(hidden, dim))
        self.dropout = dropout_layer(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens, each having looked at the others."""
        seen = self.dropout(self.attention(self.norm1(x)))
        x = (x[:, -1:] if self.last_only else x) + seen
        y: Tensor = self.dropout(self.mlp(self.norm2(x)))
        return x + y
