"""The server's merge: cached models count by freshness and samples, the global model moves towards their mean.

Source: TEASQ-Fed and TEA-Fed cache models and weigh them by staleness; the exponents and this form are RECONSTRUCTED,
after FedAsync's polynomial (https://arxiv.org/abs/1903.03934).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedhybrid.protocols import ServerState
from fedhybrid.records import Update
from fedhybrid.tree import Tensors
from fedhybrid.updates import average_present

__all__ = ["freshness", "merge_problems", "merged"]


def freshness(age: float, exponent: float) -> float:
    """What a model counts that is so many merges old: (age + 1)^-exponent.

    >>> freshness(3, 0.5)
    0.5
    """
    return float((age + 1) ** -exponent)


def merged(server: ServerState, updates: Sequence[Update], *, mixing: float, exponent: float) -> Tensors:
    """The global model after a merge of these updates.

    With t the server's version, h_k the one that update k began with, and n_k its client's samples:
    s_k = (t - h_k + 1)^-a; u = sum s_k n_k w_k / sum s_k n_k; alpha_t = alpha (mean(t - h_k) + 1)^-a;
    w <- (1 - alpha_t) w + alpha_t u.

    Args:
        server: Before it.
        updates: The cache; buffers of the model count like parameters.
        mixing: alpha.
        exponent: a.
    """
    ages = [server.version - update.round_index for update in updates]
    cached = average_present(
        server.weights,
        [update.weights for update in updates],
        [freshness(age, exponent) * update.num_samples for age, update in zip(ages, updates, strict=True)],
        [update.masks for update in updates],
    )
    share = mixing * freshness(sum(ages) / len(ages), exponent)
    return average_present(server.weights, [server.weights, cached], [1.0 - share, share], [{}, {}])


def merge_problems(*, mixing: float, exponent: float, mu: float) -> list[str]:
    """What is wrong with the options that both methods have."""
    problems = []
    if not 0 < mixing <= 1:
        problems.append(f"mixing must be above 0 and at most 1, got {mixing}")
    for name, value in (("exponent", exponent), ("mu", mu)):
        if not (math.isfinite(value) and value >= 0):
            problems.append(f"{name} must be at least 0, got {value}")
    return problems
