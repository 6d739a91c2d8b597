"""What one entry of the zoo is, and the batches that most of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CLASSES", "VOCABULARY", "Case", "images", "seeded", "texts", "token_loss"]

CLASSES = 10
VOCABULARY = 61


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small but faithful model with its loss and its batches.

    Attributes:
        batch: `batch(size, seed)` gives one batch.
        smallest_batch: 2 where batch norm sees maps of one pixel.
        unfused: Bits and bytes are those of the eager layers without oneDNN's fused recurrent kernels.
    """

    model: nn.Module
    loss_fn: Callable[..., Any]
    batch: Callable[[int, int], Any]
    smallest_batch: int = 1
    unfused: bool = False


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with the same weights every time; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def images(side: int, channels: int = 3) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Batches of labelled square images."""

    def batch(size: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size, channels, side, side, generator=generator)
        return x, torch.randint(0, CLASSES, (size,), generator=generator)

    return batch


def texts(length: int, *, each: bool = False) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Batches of token sequences with one label, or one target at `each` position."""

    def batch(size: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, VOCABULARY, (size, length + 1), generator=generator)
        labels = torch.randint(0, CLASSES, (size,), generator=generator)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous() if each else labels

    return batch


def token_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy at every position."""
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten())
