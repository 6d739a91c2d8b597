"""The steps that clients run: a network that grows with the classes, its memory, and the losses."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.methods.memory_bank.names import KEEP, LOOK, TUNE, StepName
from fedhybrid.models.memory_transformer import Memory, MemoryNet, Rows, cosine_scores, nearest, neighbours_of
from fedhybrid.protocols import Submodel

__all__ = ["BEFORE", "GROWN", "MEMORY", "OWN", "ROW_OF", "Losses", "step_of"]

BEFORE, GROWN, MEMORY, OWN, ROW_OF = "before.", "grown.", "memory.", "own", "row_of"  # of the step's tensors


@final
@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a step minimises: cross entropy of the base head, and so many times the others.

    Attributes:
        distillation: 1 - cosine of the features to those of the encoder before the task.
        memory: Cross entropy of the answer with the memory.
        stop_query: Whether the last one leaves the encoder alone.
    """

    distillation: float
    memory: float = 0.0
    stop_query: bool = True


class _LookNet(nn.Module):
    """The encoder, for the features of samples, beside the memory that is being looked through."""

    def __init__(self, net: MemoryNet, name: StepName) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(net.encoder).eval().requires_grad_(False)
        self.memory = Memory(name.seen * name.each, net.width, form=net.form)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.encoder(x), dim=1)


class _GrownNet(nn.Module):
    """The global model's twin while it learns: rows for the classes seen alone, in the order in which they came.

    `row_of` says which row is a class's; `own` says for each sample of the batch which entry of the memory is made of
    it, or -1. Clients write both, like the memory; none of them is persistent: they are no part of what travels.
    """

    row_of: Tensor
    own: Tensor | None

    def __init__(self, net: MemoryNet, name: StepName, losses: Losses) -> None:
        super().__init__()
        self.losses, self.neighbours = losses, net.neighbours
        self.encoder = copy.deepcopy(net.encoder)
        self.before = copy.deepcopy(net.encoder).eval().requires_grad_(False) if name.kind == KEEP else None
        dim = None if net.rows.tokens is None else net.rows.tokens.shape[1]
        self.grown = Rows(name.seen, net.width, dim)
        self.reader = copy.deepcopy(net.reader)
        self.scale = nn.Parameter(net.scale.detach().clone())
        self.memory = Memory(name.seen * name.each, net.width, form=net.form)
        self.register_buffer("row_of", torch.zeros(net.classes, dtype=torch.int64), persistent=False)
        self.register_buffer("own", torch.full((name.batch,), -1) if name.batch else None, persistent=False)
        if name.kind == TUNE:
            self.encoder.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor | None, ...]:
        """Scores of the base head, those with the memory, the drift of the features, and `row_of`."""
        features = self.encoder(x)
        query = F.normalize(features, dim=1)
        base = cosine_scores(query, self.grown.head, self.scale)
        drift = None if self.before is None else 1 - F.cosine_similarity(features, self.before(x), dim=1)
        if self.reader is None:
            return base, None, drift, self.row_of
        asking = query.detach() if self.losses.stop_query else query
        there = self.memory.there
        count = min(self.neighbours, len(there))
        chosen = nearest(query.detach(), self.memory.features, there, count, self.own)
        tokens = None
        if self.grown.tokens is not None:
            tokens = self.grown.tokens[self.row_of[self.memory.labels[chosen].clamp_min(0)]]
        near = self.memory.features[chosen].to(query.dtype)
        added = self.reader(asking, near, neighbours_of(chosen, there, self.own), tokens)
        return base, cosine_scores(asking + added, self.grown.head, self.scale), drift, self.row_of


def step_of(whole: Submodel, text: str, losses: Losses) -> Submodel:
    """The step of that name."""
    net, name = whole.module, StepName.read(text)
    assert isinstance(net, MemoryNet)
    if name.kind == LOOK:
        return replace(whole, module=_LookNet(net, name), loss_fn=_features)
    with torch.random.fork_rng(devices=[]):  # the rows' first values mean nothing, but torch draws them
        module = _GrownNet(net, name, losses)
    return replace(whole, module=module, loss_fn=_objective(losses))


def _features(features: Tensor, _labels: Tensor) -> tuple[Tensor, Tensor]:
    """Nothing to minimise; the features are what is wanted."""
    return features.detach().square().mean(), features


def _objective(losses: Losses) -> Any:
    def objective(output: tuple[Tensor | None, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
        base, read, drift, row_of = output
        assert base is not None
        assert row_of is not None
        rows = row_of[labels]
        each = F.cross_entropy(base, rows, reduction="none")
        total = each.mean()
        if read is not None:
            each = F.cross_entropy(read, rows, reduction="none")
            total = total + losses.memory * each.mean()
        if drift is not None:
            total = total + losses.distillation * drift.mean()
        return total, each.detach()

    return objective
