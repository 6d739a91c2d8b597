"""How important tensors are: to a client by its gradients, to all by how far the last round moved them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["blended", "change_of", "importance_of"]


def importance_of(
    before: Mapping[str, Tensor],
    once: Mapping[str, Tensor],
    twice: Mapping[str, Tensor],
    *,
    lr: float,
    names: Iterable[str],
) -> dict[str, float]:
    """ElasticTrainer's importance of each tensor: -sum(g1 * dw), the loss that one more step on the batch would save.

    Both are read from two plain steps w <- w - lr g on the same batch: dw is the first, g1 the gradient of the second.

    Args:
        before: The weights before them.
        once: After the first.
        twice: After the second.
        lr: Of the steps, above 0.
        names: Whose importance is asked for.
    """
    found = {}
    for name in names:
        start, middle, end = (tensors[name].to(torch.float64) for tensors in (before, once, twice))
        found[name] = -float((((middle - end) / lr) * (middle - start)).sum())
    return found


def change_of(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, float]:
    """Sum of squares of what each tensor was moved by.

    FedEL divides it by the learning rate; as its importance is scaled to a maximum of 1, that makes no difference.
    """
    return {
        name: float((after[name].to(torch.float64) - before[name].to(torch.float64)).square().sum()) for name in names
    }


def blended(own: Mapping[str, float], common: Mapping[str, float], *, beta: float) -> dict[str, float]:
    """`beta` of a client's own importance and the rest of the common one, each scaled to a largest magnitude of 1.

    Args:
        own: By tensor; what is not finite counts as 0.
        common: Of the same tensors; where it is 0 throughout, as before the first round, the own one counts alone.
        beta: From 0 to 1.
    """
    own, common = _scaled(own), _scaled({name: common.get(name, 0.0) for name in own})
    if not any(common.values()):
        return own
    return {name: beta * value + (1 - beta) * common[name] for name, value in own.items()}


def _scaled(values: Mapping[str, float]) -> dict[str, float]:
    finite = {name: value if math.isfinite(value) else 0.0 for name, value in values.items()}
    largest = max((abs(value) for value in finite.values()), default=0.0)
    return {name: value / largest if largest else 0.0 for name, value in finite.items()}
