"""Attention in its usual forms: ViT, shifted windows with relative bias, causal language model, torch's own layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import CLASSES, VOCABULARY, Case, images, seeded, texts, token_loss

__all__ = ["encoder", "gpt", "swin", "vit"]


class Attention(nn.Module):
    """Fused query, key and value; `torch.nn.functional.scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int, *, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal, self.dropout = heads, causal, dropout

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        q, k, v = self.qkv(x).view(size, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=self.causal)
        out: Tensor = self.out(h.transpose(1, 2).reshape(size, length, width))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, attention: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Patches of four by four, a class token, learned positions."""

    def __init__(self, side: int, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (side // 4) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, Attention(width, 3)) for _ in range(depth)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1) + self.position
        scores: Tensor = self.out(self.norm(self.blocks(h))[:, 0])
        return scores


def vit(side: int) -> Case:
    return Case(model=seeded(lambda: ViT(side)), loss_fn=F.cross_entropy, batch=images(side))


class WindowAttention(nn.Module):
    """Attention inside windows of `window` by `window`, shifted by `shift`, with a learned bias per relative offset."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.window, self.shift = heads, window, shift
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = (place[:, :, None] - place[:, None, :]) + window - 1
        self.register_buffer("offset", offset[0] * (2 * window - 1) + offset[1])
        region = torch.zeros(1, side, side, 1)
        for number, rows in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
            for other, columns in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                region[:, rows, columns] = 3 * number + other
        ids = self._split(region).squeeze(-1)
        mask = (ids[:, None, :] != ids[:, :, None]).float() * -100.0
        self.register_buffer("mask", mask if shift else torch.zeros_like(mask), persistent=False)

    def _split(self, x: Tensor) -> Tensor:
        size, height, width, channels = x.shape
        n = self.window
        x = x.view(size, height // n, n, width // n, n, channels).transpose(2, 3)
        return x.reshape(-1, n * n, channels)

    def forward(self, x: Tensor) -> Tensor:
        size, height, width, channels = x.shape
        shifted = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        h = self._split(shifted)
        q, k, v = self.qkv(h).view(h.shape[0], h.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
        scores = scores + self.bias[self.offset].permute(2, 0, 1)
        windows = self.mask.shape[0]
        scores = scores.view(size, windows, *scores.shape[1:]) + self.mask[None, :, None]
        weights = scores.flatten(0, 1).softmax(-1)
        h = self.out((weights @ v).transpose(1, 2).reshape(h.shape))
        n = self.window
        h = h.view(size, height // n, width // n, n, n, channels).transpose(2, 3).reshape(x.shape)
        return torch.roll(h, (self.shift, self.shift), (1, 2)) if self.shift else h


class Merge(nn.Module):
    """Two by two neighbours become one place with twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        merged: Tensor = self.reduce(self.norm(torch.cat(corners, -1)))
        return merged


class Swin(nn.Module):
    def __init__(self, side: int, width: int = 16) -> None:
        super().__init__()
        fine, coarse = side // 2, side // 4
        self.patches = nn.Conv2d(3, width, 2, 2)
        stages: list[nn.Module] = [Block(width, WindowAttention(width, 2, fine, 4, shift)) for shift in (0, 2)]
        stages.append(Merge(width))
        window = min(4, coarse // 2)
        stages += [Block(2 * width, WindowAttention(2 * width, 4, coarse, window, s)) for s in (0, window // 2)]
        self.stages, self.norm = nn.Sequential(*stages), nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stages(self.patches(x).permute(0, 2, 3, 1))
        scores: Tensor = self.out(self.norm(h).mean((1, 2)))
        return scores


def swin(side: int) -> Case:
    return Case(model=seeded(lambda: Swin(side)), loss_fn=F.cross_entropy, batch=images(side))


class GPT(nn.Module):
    """Causal attention with dropout everywhere; embedding and output share one matrix."""

    def __init__(self, length: int, width: int = 24, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.drop = nn.Dropout(0.1)
        attention = (Attention(width, 3, causal=True, dropout=0.1) for _ in range(depth))
        self.blocks = nn.Sequential(*(Block(width, each, 0.1) for each in attention))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.drop(self.embed(tokens) + self.position(torch.arange(tokens.shape[1])))
        scores: Tensor = self.out(self.norm(self.blocks(h)))
        return scores


def gpt(side: int) -> Case:
    return Case(model=seeded(lambda: GPT(2 * side)), loss_fn=token_loss, batch=texts(2 * side, each=True))


class Encoder(nn.Module):
    """torch.nn's own encoder layers, with dropout, a key padding mask and the mean over what is not padded."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, 3, 48, dropout=0.1, activation="gelu", batch_first=True)
        self.layers, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        h = self.layers(self.embed(tokens), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(h.dtype)
        scores: Tensor = self.out((h * kept).sum(1) / kept.sum(1))
        return scores


def encoder(side: int) -> Case:
    return Case(model=seeded(Encoder), loss_fn=F.cross_entropy, batch=texts(2 * side))
