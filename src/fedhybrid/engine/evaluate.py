"""The model on data that it does not learn from: on the server's test set, and on a device, inside its budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.data import Split
from fedhybrid.graph import allocator_events, peak_of
from fedhybrid.tree import Tensors, load_into, tensors_of, total_bytes

__all__ = ["EvaluationSizes", "Evaluator", "Score"]

_BATCH = 256
_LARGEST_POWER = 8  # of two: 256 samples at once


@dataclass(frozen=True, kw_only=True)
class Score:
    """Share of correct answers (0 to 1) and mean cross entropy; `loss` is None where that is not a finite number."""

    accuracy: float
    loss: float | None


@final
class Evaluator:
    """Scores weights in a copy of the model that is in evaluation mode for ever; the model itself is not touched."""

    def __init__(self, model: nn.Module, split: Split) -> None:
        self._model, self._split = copy.deepcopy(model).eval(), split
        self._tensors = tensors_of(self._model)
        self._last: tuple[Tensors, Tensor, Tensor] | None = None
        self._seen: tuple[int, ...] | None = None

    @property
    def labels(self) -> Tensor:
        """Of the samples, in the order of `whole`."""
        return self._split.labels[self._samples]

    @property
    def _samples(self) -> Tensor:
        every = torch.arange(len(self._split))
        return every if self._seen is None else every[torch.isin(self._split.labels, torch.tensor(self._seen))]

    def see(self, classes: Sequence[int] | None) -> None:
        """From now on only samples of these classes are asked, and only they can be answers; None: all."""
        classes = None if classes is None else tuple(classes)
        if classes != self._seen:
            self._seen, self._last = classes, None

    def load(self, weights: Tensors) -> None:
        """What the next answers come from."""
        load_into(self._tensors, weights)

    def score(self, weights: Tensors) -> Score:
        """Accuracy and loss of `weights` on the whole split."""
        correct, losses = self.whole(weights)
        loss = float(losses.sum()) / len(losses)
        return Score(accuracy=int(correct.sum()) / len(correct), loss=loss if math.isfinite(loss) else None)

    def whole(self, weights: Tensors) -> tuple[Tensor, Tensor]:
        """`answers` of `weights` for all samples that are asked.

        For the same dictionary they are not made again.
        """
        if self._last is None or self._last[0] is not weights:
            self.load(weights)
            self._last = (weights, *self.answers(self._samples, _BATCH))
        return self._last[1:]

    def answers(self, samples: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Whether each of these samples is answered correctly (bool), and its cross entropy (float64)."""
        correct: list[Tensor] = []
        losses: list[Tensor] = []
        with torch.inference_mode():
            for chosen in torch.split(samples, batch_size):
                x, y = self._split.batch(chosen)
                scores = self._answerable(self._model(x))
                correct.append(scores.argmax(dim=1) == y)
                losses.append(F.cross_entropy(scores, y, reduction="none").to(torch.float64))
        return torch.cat(correct), torch.cat(losses)

    def _answerable(self, scores: Tensor) -> Tensor:
        """Without those of classes that have not been seen: a model that had grown with them would have no others."""
        if self._seen is None:
            return scores
        hidden = torch.ones(scores.shape[1], dtype=torch.bool)
        hidden[list(self._seen)] = False
        return scores.masked_fill(hidden, -math.inf)

    def peak_bytes(self, batch_size: int) -> int:
        """Peak of one forward pass by the allocator's events: the model, the batch and all that it makes."""
        samples = torch.from_numpy(np.arange(batch_size, dtype=np.int64) % len(self._split))
        seen, self._seen = self._seen, None  # the same whenever it is asked first; scores are small beside the pass
        try:
            with allocator_events() as events:
                kept = self.answers(samples, batch_size)
            del kept
        finally:
            self._seen = seen
        return total_bytes(self._tensors) + peak_of(events)


@final
class EvaluationSizes:
    """How many samples at once a device may evaluate: powers of two up to 256, measured when first asked for."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._peaks: dict[int, int] = {}

    def peak_bytes(self, batch_size: int) -> int:
        """What that batch needs."""
        if batch_size not in self._peaks:
            self._evaluator.peak_bytes(batch_size)  # a first pass may set something up that stays
            self._peaks[batch_size] = self._evaluator.peak_bytes(batch_size)
        return self._peaks[batch_size]

    def largest(self, budget_bytes: int) -> int:
        """The largest batch within the budget; 0 where not even one sample fits."""
        best = 0
        for power in range(_LARGEST_POWER + 1):
            if self.peak_bytes(2**power) > budget_bytes:
                break
            best = 2**power
        return best
