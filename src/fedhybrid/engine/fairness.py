"""Whom the final model serves: its accuracy on data like each client's own, by tier and for the worst tenth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedhybrid.data import Dataset, Shards
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.fleet import Fleet
from fedhybrid.records import FloatArray, IntArray
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = ["Fairness", "fairness_of", "own_accuracies"]

_MOST_CLIENTS = 10_000  # of a larger fleet so many are drawn: their mean is then known to half a per cent


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """Accuracies, 0 to 1, as means over clients, each client alike.

    Attributes:
        clients: Over how many.
        by_tier: For each tier; None where none of its clients is among them.
        worst_tenth: Over the tenth of the clients that the model serves worst; None where there are no clients.
    """

    clients: int
    by_tier: dict[str, float | None]
    worst_tenth: float | None


def fairness_of(
    weights: Tensors, evaluator: Evaluator, dataset: Dataset, shards: Shards, fleet: Fleet, *, natural: bool, seed: int
) -> Fairness:
    """The figures for this model.

    Args:
        weights: The model.
        evaluator: Of the test split.
        dataset: The data.
        shards: Who holds what of the training split.
        fleet: Who is in which tier.
        natural: Whether clients are people of the data set, each with test samples of its own.
        seed: Of the run; a large fleet is sampled.
    """
    chosen = np.arange(len(shards), dtype=np.int64)
    if len(chosen) > _MOST_CLIENTS:
        rng = np.random.default_rng(derive_seed(seed, purpose="fairness"))
        chosen = np.sort(rng.choice(len(chosen), _MOST_CLIENTS, replace=False))
    correct, _ = evaluator.whole(weights)
    accuracy = own_accuracies(correct.numpy(), dataset, shards, chosen, natural=natural)
    known = ~np.isnan(accuracy)
    chosen, accuracy = chosen[known], accuracy[known]
    tier = np.asarray(fleet.tier)[chosen]
    worst = np.sort(accuracy)[: math.ceil(len(accuracy) / 10)]
    return Fairness(
        clients=len(chosen),
        by_tier={
            each.name: float(accuracy[tier == number].mean()) if (tier == number).any() else None
            for number, each in enumerate(fleet.tiers)
        },
        worst_tenth=float(worst.mean()) if len(worst) else None,
    )


def own_accuracies(
    correct: np.ndarray, dataset: Dataset, shards: Shards, clients: IntArray, *, natural: bool
) -> FloatArray:
    """Accuracy on data like each client's own; NaN where there are none.

    A client that is a person of the data set is tested on that person's test samples, also on those of classes that its
    device may not hold (`PartitionSpec.holders`). Otherwise nobody's data are held back, and the accuracy on each class
    of the test set is weighted by the classes of the client's training samples; classes that the test set has no
    samples of are left out.

    Args:
        correct: Whether each test sample is answered correctly.
        dataset: The data.
        shards: Who holds what of the training split.
        clients: Whom to ask.
        natural: See `fairness_of`.
    """
    if natural and dataset.test_ids is not None and dataset.natural_ids is not None:
        people = int(max(dataset.natural_ids.max(), dataset.test_ids.max())) + 1
        right = np.bincount(dataset.test_ids, weights=correct, minlength=people)
        tested = np.bincount(dataset.test_ids, minlength=people)
        own = (np.unique(dataset.natural_ids[shards[int(client)]]) for client in clients)
        return np.array([_ratio(right[each].sum(), tested[each].sum()) for each in own])
    labels = dataset.test.labels.numpy()
    right = np.bincount(labels, weights=correct, minlength=dataset.classes)
    tested = np.bincount(labels, minlength=dataset.classes)
    by_class = right / np.maximum(tested, 1)
    held = dataset.train.labels.numpy()
    mixes = (np.bincount(held[shards[int(client)]], minlength=dataset.classes) * (tested > 0) for client in clients)
    return np.array([_ratio(float(mix @ by_class), float(mix.sum())) for mix in mixes])


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
