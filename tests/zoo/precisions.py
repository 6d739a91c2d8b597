"""bfloat16, as autocast inside the model or round the loss, and as the parameters' own type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo import convnets, transformers_small
from tests.zoo.case import Case

__all__ = ["autocast_loss", "autocast_model", "bfloat16_images", "bfloat16_texts"]


class Autocast(nn.Module):
    """Runs a model under bfloat16 autocast; the scores come out as float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores: Tensor = self.inner(x)
        return scores.float()


def autocast_model(side: int) -> Case:
    """Max-pool, transposed convolutions, batch norm in mixed precision."""
    case = convnets.unet(side)
    return Case(model=Autocast(case.model), loss_fn=case.loss_fn, batch=case.batch)


def _autocast_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(batch["tokens"])
        return F.cross_entropy(scores.flatten(0, 1), batch["next"].flatten())


def autocast_loss(side: int) -> Case:
    """Tied embeddings under autocast: one weight is cast for two uses."""
    case = transformers_small.gpt(side)

    def batch(size: int, seed: int) -> dict[str, Tensor]:
        tokens, following = case.batch(size, seed)
        return {"tokens": tokens, "next": following}

    return Case(model=case.model, loss_fn=_autocast_loss, batch=batch)


def _as_bfloat16(case: Case) -> Case:
    def batch(size: int, seed: int) -> Any:
        x, y = case.batch(size, seed)
        return (x.bfloat16() if x.is_floating_point() else x), y

    return Case(model=case.model.bfloat16(), loss_fn=case.loss_fn, batch=batch, smallest_batch=case.smallest_batch)


def bfloat16_images(side: int) -> Case:
    return _as_bfloat16(convnets.resnet18(side, norm=convnets.batch_norm))


def bfloat16_texts(side: int) -> Case:
    return _as_bfloat16(transformers_small.encoder(side))
