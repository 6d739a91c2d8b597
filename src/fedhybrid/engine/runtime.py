"""The clients' side in this process: a model and a compiled step for each submodel, used by client after client.

A task's result depends on its weights, its seed, the client's data and what the client kept, alone: weights are copied
in, the optimizer starts afresh, torch's generator is seeded for the task (and left as it was for everybody else), and
one intra-op thread computes, so that float sums have one order on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.data import Split
from fedhybrid.engine.evaluate import EvaluationSizes, Evaluator
from fedhybrid.planner import Plan
from fedhybrid.protocols import Method
from fedhybrid.records import ClientTask, IntArray, LocalWork, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, detached_copy, load_into

__all__ = [
    "Ask",
    "LocalClient",
    "PlannedStep",
    "Station",
    "Stretch",
    "Workbench",
    "classification_loss",
    "of_classes",
    "one_thread",
    "steps_of",
]


Ask = Callable[[Tensors], Tensors]  # a question to the server, and its answer


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
    >>> steps_of(LocalWork(epochs=1, batch_size=8, lr=0.1, samples=20), 17)
    3
    """
    if num_samples == 0:
        return 0
    if work.steps is not None:
        return work.steps
    if work.samples is not None:
        return math.ceil(work.samples / work.batch_size)
    whole, rest = divmod(num_samples, work.batch_size)
    return work.epochs * (whole + (1 if rest and work.last_batch == "wrap" else 0))


def of_classes(shard: IntArray, labels: Tensor, classes: Sequence[int] | None) -> IntArray:
    """The samples of these classes in their order; all of them where None."""
    if classes is None:
        return shard
    chosen = torch.isin(labels[torch.from_numpy(shard)], torch.tensor(classes, dtype=labels.dtype))
    return np.asarray(shard[chosen.numpy()], dtype=np.int64)


@contextmanager
def one_thread() -> Iterator[None]:
    """One intra-op thread inside, the caller's number again afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class PlannedStep(Protocol):
    """A training step on one model, in place, that switches between plans; `TrainStep` and `PortableStep` are two."""

    @property
    def aux(self) -> Tensor | None:
        """What the loss function returned beside the loss at the last call."""
        ...

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """One step; the detached loss."""
        ...

    def use_plan(self, plan: Plan, /) -> None:
        """This plan from the next step on."""
        ...

    def set_lr(self, lr: float, /) -> None:
        """This learning rate from the next step on."""
        ...

    def reset_optimizer(self) -> None:
        """Fresh state, from the parameters as they are now."""
        ...

    def reset_codecs(self, seed: int, /) -> None:
        """What codecs remember begins anew."""
        ...

    def measured_peak_bytes(self) -> int:
        """The allocator's peak of one real step by the plan in use, resident bytes included."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """So many steps of a task by one program; a task whose budget moves has several."""

    program: Plan
    steps: int


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Station:
    """A submodel that every client of this process trains in.

    Attributes:
        step: Its compiled step.
        tensors: Its parameters and buffers, which the step changes in place.
        buffers: Names of those that no gradient changes.
    """

    step: PlannedStep
    tensors: Tensors
    buffers: frozenset[str]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """Where clients of this process train.

    Attributes:
        model: The global model.
        split: The training data.
        station: Gives the station of a submodel by its name.
    """

    model: nn.Module
    split: Split
    station: Callable[[str], Station]

    @cached_property
    def evaluator(self) -> Evaluator:
        """For tasks that test the model on a client's own data."""
        return Evaluator(self.model, self.split)

    @cached_property
    def sizes(self) -> EvaluationSizes:
        """How many samples at once fit which budget there."""
        return EvaluationSizes(self.evaluator)

    def run(
        self,
        method: Method,
        task: ClientTask,
        shard: IntArray,
        stretches: Sequence[Stretch],
        state: Tensors,
        *,
        ask: Ask | None = None,
    ) -> Update:
        """Does a task as the client that holds the samples `shard` and has kept `state`.

        Args:
            method: Whose client side it is.
            task: What to do.
            shard: The client's sample numbers; those of the task's classes take part.
            stretches: The programs of its training step, one after the other; not empty.
            state: What the client's last task left.
            ask: Takes the client's questions to the server; None where the method has none.
        """
        station, shard = self.station(task.submodel), of_classes(shard, self.split.labels, task.classes)
        client = LocalClient(station=station, split=self.split, shard=shard, stretches=stretches, state=state, ask=ask)
        station.step.set_lr(task.work.lr)
        station.step.reset_codecs(task.seed)
        before = torch.get_rng_state()  # `fork_rng` asks about every other device, which takes longer than a small task
        torch.default_generator.manual_seed(task.seed)  # torch.manual_seed takes 2 ms without a GPU
        try:
            return method.train(task, client)
        finally:
            torch.set_rng_state(before)


@final
class LocalClient:
    """A client at the workbench; implements `protocols.ClientRuntime`."""

    def __init__(
        self,
        *,
        station: Station,
        split: Split,
        shard: IntArray,
        stretches: Sequence[Stretch],
        state: Tensors | None = None,
        ask: Ask | None = None,
    ) -> None:
        self._station, self._split, self._shard = station, split, shard
        self._stretches, self._ask = stretches, ask
        self._state: Mapping[str, Tensor] = state or {}
        self._at, self._left = 0, stretches[0].steps
        station.step.use_plan(stretches[0].program)

    @property
    def num_samples(self) -> int:
        """Training samples on this client."""
        return len(self._shard)

    @property
    def buffers(self) -> frozenset[str]:
        """Names of the submodel's tensors that no gradient changes."""
        return self._station.buffers

    @property
    def state(self) -> Tensors:
        """What the client has kept since its last task."""
        return dict(self._state)

    @property
    def labels(self) -> Tensor:
        """The label of each of its samples, by their positions."""
        return self._split.labels[torch.from_numpy(self._shard)]

    @property
    def tensors(self) -> Tensors:
        """The submodel itself."""
        return self._station.tensors

    def load(self, weights: Tensors) -> None:
        """Sets the submodel to `weights` in place and then, as its state may copy them, the optimizer to its start."""
        load_into(self._station.tensors, {name: weights[name] for name in self._station.tensors})
        self._station.step.reset_optimizer()

    def batches(self, work: LocalWork, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in an order drawn anew for each epoch; "wrap" fills the last from the start of one more order."""
        return map(self.batch, self.draws(work, seed))

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The client's samples at these positions."""
        return self._split.batch(torch.from_numpy(self._shard)[positions])

    def draws(self, work: LocalWork, seed: int, *, among: Tensor | None = None) -> Iterator[Tensor]:
        """Positions in an order drawn anew for each epoch; "wrap" fills the last from the start of one more order."""
        generator = torch.Generator().manual_seed(derive_seed(seed, purpose="batches"))
        held = torch.arange(len(self._shard)) if among is None else among
        # Work by steps or samples is one long epoch that wraps as often as it must.
        epochs = work.epochs if work.steps is None and work.samples is None else 1
        wanted = steps_of(work, len(held)) // epochs * work.batch_size
        for _ in range(epochs if wanted else 0):
            order = torch.randperm(len(held), generator=generator)
            while len(order) < wanted:
                order = torch.cat([order, torch.randperm(len(held), generator=generator)])
            yield from torch.split(held[order[:wanted]], work.batch_size)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One training step in place: the mean loss and the loss of each sample."""
        step = self._station.step
        while self._left == 0 and self._at + 1 < len(self._stretches):
            self._at += 1
            self._left = self._stretches[self._at].steps
            step.use_plan(self._stretches[self._at].program)
        self._left -= 1
        loss = step(x, y)
        losses = step.aux
        assert isinstance(losses, Tensor)
        return loss, losses

    def weights(self) -> Tensors:
        """A copy of the submodel as it is now."""
        return detached_copy(self._station.tensors)

    def exchange(self, question: Tensors) -> Tensors:
        """The server's answer to a question in the middle of the task."""
        assert self._ask is not None, "a method whose clients ask must have an attendant (Method.attend)"
        return self._ask(question)

    @property
    def measured_peak_bytes(self) -> int:
        """Largest peak of one real step of the programs so far, by the allocator's events."""
        step, peaks = self._station.step, []
        for stretch in self._stretches[: self._at + 1]:
            step.use_plan(stretch.program)
            peaks.append(step.measured_peak_bytes())
        return max(peaks)
