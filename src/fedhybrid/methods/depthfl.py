"""DepthFL: a device trains the first layers of the network, as many as it can hold, with a classifier at each depth.

Source: M. Kim, S. Yu, S. Kim, S.-M. Moon, "DepthFL: Depthwise Federated Learning for Heterogeneous Clients", ICLR 2023,
https://openreview.net/forum?id=pf8RIZTMU58
Follows: local models are the first parts of the global one, cut at `levels` depths, each with the classifiers of all
depths up to its own; the loss is the sum of their cross entropies and, for every ordered pair (j, i), the divergence
KL(p_j || p_i) over their number less one: each classifier learns from all others, deeper and shallower ones, whose
scores are constants there. Each tensor is averaged over those who hold it; the answer is the mean of all classifiers'
scores.
Differs: classifiers are light (mean, one linear layer that begins with zeros), the paper's are deeper; clients train
as in FedAvg, where the paper adds FedDyn's regularisation; the weight of the divergence is constant, where the authors'
program raises it over the first rounds. A client's depth follows from its memory (the deepest that fits as PyTorch runs
it; plans, where a recipe switches them on, make deeper ones fit), and the mean weighs by samples.
Ours: a client that holds the plain step, but not the classifiers beside it, trains the plain step ("plain").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import AbstractAveraging, tasks_for_cohort
from fedhybrid.models.depths import first_levels, level_names, levels_of, with_classifiers, without_classifiers
from fedhybrid.models.ordered import parts_of, tensor_names
from fedhybrid.protocols import Optimizer, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask

__all__ = ["DepthFL", "SelfDistillation"]

_PLAIN = "plain"
_ANSWERS = ("deepest", "ensemble")


@final
@dataclass(frozen=True, kw_only=True)
class SelfDistillation:
    """The loss of several classifiers that learn from the labels and from each other.

    Attributes:
        weight: Of what they learn from each other.
    """

    weight: float

    def __call__(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the cross entropy of each sample (shape: batch) by the deepest classifier.

        Args:
            scores: (levels, batch, classes), the deepest classifier last.
            labels: (batch).
        """
        levels = len(scores)
        log_p = scores.log_softmax(dim=-1)
        losses = [F.nll_loss(log_p[level], labels, reduction="none") for level in range(levels)]
        loss = torch.stack([each.mean() for each in losses]).sum()
        if levels > 1 and self.weight:
            log_q = log_p.detach()
            q = log_q.exp()
            # Sum over all pairs of q_j (log q_j - log p_i), where a pair of one and the same adds nothing.
            divergence = levels * (q * log_q).sum() - (q.sum(dim=0) * log_p.sum(dim=0)).sum()
            loss = loss + self.weight / (levels - 1) / scores.shape[1] * divergence
        return loss, losses[-1]


@final
@dataclass(frozen=True, kw_only=True)
class DepthFL(AbstractAveraging):
    """Each client trains as many of the first parts of the network as its memory holds, classifiers at several depths.

    Attributes:
        levels: Depths at which a local model may end, at least 1; fewer where the model has fewer parts.
        distillation: Weight of what classifiers learn from each other, at least 0.
        answer: "ensemble", the mean of all classifiers' scores, or "deepest".
    """

    levels: int = 4
    distillation: float = 1.0
    answer: str = "ensemble"

    def __post_init__(self) -> None:
        problems = []
        if self.levels < 1:
            problems.append(f"levels must be at least 1, got {self.levels}")
        if not (math.isfinite(self.distillation) and self.distillation >= 0):
            problems.append(f"distillation must be at least 0, got {self.distillation}")
        if self.answer not in _ANSWERS:
            problems.append(f"answer must be 'ensemble' or 'deepest', got {self.answer!r}")
        if problems:
            raise ConfigError(problems)

    @property
    def plans(self) -> bool:
        """No plans unless a recipe switches them on: who cannot hold a depth runs a shallower one as it is."""
        return False

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The recipe's model with classifiers at several depths."""
        return with_classifiers(model, sample, self.levels, ensemble=self.answer == "ensemble")

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """All depths, the deepest first; between it and the next the plain step."""
        deepest, *others = range(len(levels_of(model)), 0, -1)
        return (f"d{deepest}", *((_PLAIN,) if others else ()), *(f"d{level}" for level in others))

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The first parts with their classifiers; the whole with its own alone."""
        if not name:
            return whole
        if name == _PLAIN:
            return replace(whole, module=without_classifiers(whole.module))
        module = first_levels(whole.module, int(name[1:]))
        return replace(whole, module=module, loss_fn=SelfDistillation(weight=self.distillation))

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """To each client its part of the global model."""
        model = plan.costs.whole.module
        return [replace(task, sent=_names(model, task.submodel)) for task in tasks_for_cohort(server, plan)]


def _names(model: nn.Module, submodel: str) -> tuple[str, ...] | None:
    """Of the tensors of a submodel; None: all."""
    if submodel == _PLAIN:
        return tuple(name for part in parts_of(model) for name in tensor_names(model, part))
    return level_names(model, int(submodel[1:])) if submodel else None
