"""The global model on the test set."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.data import Split
from fedhybrid.tree import Tensors, load_into, tensors_of

__all__ = ["Evaluator", "Score"]

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Score:
    """Share of correct answers (0 to 1) and mean cross entropy; `loss` is None where that is not a finite number."""

    accuracy: float
    loss: float | None


@final
class Evaluator:
    """Scores weights in a copy of the model that is in evaluation mode for ever; the model itself is not touched."""

    def __init__(self, model: nn.Module, test: Split) -> None:
        self._model, self._test = copy.deepcopy(model).eval(), test

    def score(self, weights: Tensors) -> Score:
        """Accuracy and loss of `weights` on the test set."""
        load_into(tensors_of(self._model), weights)
        correct, loss_sum = 0, 0.0
        with torch.inference_mode():
            for start in range(0, len(self._test), _BATCH):
                x, y = self._test.batch(slice(start, start + _BATCH))
                scores = self._model(x)
                correct += int((scores.argmax(dim=1) == y).sum())
                loss_sum += F.cross_entropy(scores, y, reduction="sum").item()
        loss = loss_sum / len(self._test)
        return Score(accuracy=correct / len(self._test), loss=loss if math.isfinite(loss) else None)
