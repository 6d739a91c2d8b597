"""The clients' side in this process: one model and one compiled step, used by one client after the other.

A task's result depends on its weights, its seed and the client's data alone: weights are copied in, the optimizer
starts afresh, torch's generator is seeded for the task (and left as it was for everybody else), and one intra-op thread
computes, so that float sums have one order on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.data import Split
from fedhybrid.executor import TrainStep
from fedhybrid.planner import Plan
from fedhybrid.protocols import Method
from fedhybrid.records import ClientTask, IntArray, LocalWork, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, detached_copy, load_into, tensors_of

__all__ = ["LocalClient", "Workbench", "classification_loss", "one_thread", "steps_of"]


def classification_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy: its mean, which is trained on, and each sample's own, which selection learns from."""
    losses = F.cross_entropy(scores, labels, reduction="none")
    return losses.mean(), losses


def steps_of(work: LocalWork, num_samples: int) -> int:
    """Training steps of one task on a client with so many samples.

    >>> steps_of(LocalWork(epochs=2, batch_size=8, lr=0.1), 17)
    6
    >>> steps_of(LocalWork(epochs=2, batch_size=8, lr=0.1, last_batch="drop"), 17)
    4
    """
    whole, rest = divmod(num_samples, work.batch_size)
    return work.epochs * (whole + (1 if rest and work.last_batch == "wrap" else 0))


@contextmanager
def one_thread() -> Iterator[None]:
    """One intra-op thread inside, the caller's number again afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """The one model that every client of this process trains in, and its step; `step` was compiled from `model`."""

    model: nn.Module
    step: TrainStep
    split: Split

    @cached_property
    def tensors(self) -> Tensors:
        """The model's own parameters and buffers, sharing its memory."""
        return tensors_of(self.model)

    def run(self, method: Method, task: ClientTask, shard: IntArray, program: Plan) -> Update:
        """Does a task as the client that holds the samples `shard`, with `program` as its training step."""
        self.step.use_plan(program)
        self.step.set_lr(task.work.lr)
        self.step.reset_codecs(task.seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(task.seed)  # torch.manual_seed takes 2 ms without a GPU
            return method.train(task, LocalClient(bench=self, shard=shard))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LocalClient:
    """A client at the workbench; implements `protocols.ClientRuntime`."""

    bench: Workbench
    shard: IntArray

    @property
    def num_samples(self) -> int:
        """Training samples on this client."""
        return len(self.shard)

    def load(self, weights: Tensors) -> None:
        """Sets the model to `weights` in place and then, as its state may copy them, the optimizer to its start."""
        load_into(self.bench.tensors, weights)
        self.bench.step.reset_optimizer()

    def batches(self, work: LocalWork, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in an order drawn anew for each epoch; "wrap" fills the last from the start of one more order."""
        generator = torch.Generator().manual_seed(derive_seed(seed, purpose="batches"))
        held = torch.from_numpy(self.shard)
        steps = steps_of(work, len(held)) // work.epochs
        for _ in range(work.epochs):
            order = torch.randperm(len(held), generator=generator)
            while len(order) < steps * work.batch_size:
                order = torch.cat([order, torch.randperm(len(held), generator=generator)])
            for start in range(0, steps * work.batch_size, work.batch_size):
                yield self.bench.split.batch(held[order[start : start + work.batch_size]])

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One training step in place: the mean loss and the loss of each sample."""
        loss = self.bench.step(x, y)
        losses = self.bench.step.aux
        assert isinstance(losses, Tensor)
        return loss, losses

    def weights(self) -> Tensors:
        """A copy of the model as it is now."""
        return detached_copy(self.bench.tensors)

    @property
    def measured_peak_bytes(self) -> int:
        """Peak of one real step of the current program, by the allocator's events."""
        return self.bench.step.measured_peak_bytes()
