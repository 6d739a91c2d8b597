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

    def narrow_groups(self) -> dict[str, tuple[int, int]]:
        """Groups of outputs and inputs: query, key and value of each head; see `models/shares.py`."""
        return {"qkv": (3 * self.heads, 1), "out": (1, self.heads)}

    def forward(self, x: Tensor) -> Tensor:
        return self._looked(*self._heads(x))

    def with_first_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and how much the first token looks at each of the others: its mean over the heads, (b, t - 1).

        Only that row of scores is worked out: the operator that looks keeps none.
        """
        q, k, v = self._heads(x)
        row = (q[:, :, :1] * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return self._looked(q, k, v), row.softmax(dim=-1).mean(dim=1)[:, 0, 1:]

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (b, heads, t, d / heads)."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return q[:, :, -1:] if self.last_only else q, k, v

    def _looked(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, heads, t, width = q.shape
        ratio = self.dropout_ratio if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=ratio, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(b, t, heads * width))  # type: ignore[no-any-return]


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
