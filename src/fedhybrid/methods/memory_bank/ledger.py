"""What the server of a method with a memory knows: the encoder before the task, and how much each client holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from fedhybrid.methods.memory_bank.steps import BEFORE
from fedhybrid.records import Update
from fedhybrid.tree import Tensors

__all__ = ["ENCODER", "Holding", "Ledger"]

ENCODER = "encoder."  # of the global model's tensors
_TASK, _HELD, _COUNTS = "memory/task", "memory/held", "memory/counts"
_HOLDERS, _ENCODER = "memory/holders", "memory/before."
_SAMPLES, _OF_CLASS, _EACH = "memory/samples", "memory/class-", "memory/each"  # figures of updates


@final
@dataclass(frozen=True, kw_only=True)
class Holding:
    """What a client says when it has looked at its samples.

    Attributes:
        samples: Of the task's classes.
        counts: Exemplars of each class that it has some of.
        task: Number of the task.
    """

    samples: int
    counts: Mapping[int, int]
    task: int

    def exemplars(self, each: int, *, without: Sequence[int] = ()) -> int:
        """How many there are, at most `each` of a class, those of some classes left out.

        >>> Holding(samples=9, counts={1: 5, 2: 1, 7: 3}, task=1).exemplars(3, without=[7])
        4
        """
        return sum(min(count, each) for label, count in self.counts.items() if label not in without)

    def cut(self, each: int) -> Holding:
        """At most so many of a class."""
        return replace(self, counts={label: min(count, each) for label, count in self.counts.items()})

    def as_metrics(self) -> dict[str, float]:
        """As figures of an update."""
        counts = {f"{_OF_CLASS}{label}": float(count) for label, count in self.counts.items()}
        return {_SAMPLES: float(self.samples), _TASK: float(self.task), **counts}

    @classmethod
    def of_metrics(cls, metrics: Mapping[str, float]) -> Holding:
        """As a client sends it."""
        counts = {int(n.removeprefix(_OF_CLASS)): int(v) for n, v in metrics.items() if n.startswith(_OF_CLASS)}
        return cls(samples=int(metrics[_SAMPLES]), counts=counts, task=int(metrics[_TASK]))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ledger:
    """Goes into `ServerState.extra` and comes out of it.

    Attributes:
        task: Whose encoder `before` is; -1 before anything.
        before: The encoder as the task found it, by the names of its tensors.
        holders: Clients that have it.
        held: What each client holds that has ever looked, as it said last.
    """

    task: int = -1
    before: Tensors = field(default_factory=dict)
    holders: frozenset[int] = frozenset()
    held: Mapping[int, Holding] = field(default_factory=dict)

    @classmethod
    def of(cls, extra: Mapping[str, Tensor]) -> Ledger:
        """As the server kept it."""
        if _TASK not in extra:
            return cls()
        counts: dict[int, dict[int, int]] = {}
        for client, label, count in extra[_COUNTS].tolist():
            counts.setdefault(client, {})[label] = count
        return cls(
            task=int(extra[_TASK]),
            before={name.removeprefix(_ENCODER): t for name, t in extra.items() if name.startswith(_ENCODER)},
            holders=frozenset(extra[_HOLDERS].tolist()),
            held={
                client: Holding(samples=samples, counts=counts.get(client, {}), task=task)
                for client, samples, task in extra[_HELD].tolist()
            },
        )

    def as_extra(self) -> Tensors:
        """As the server keeps it."""
        held = sorted(self.held.items())
        rows = [[client, holding.samples, holding.task] for client, holding in held]
        counts = [[client, label, n] for client, holding in held for label, n in sorted(holding.counts.items())]
        return {
            _TASK: torch.tensor(self.task),
            _HELD: torch.tensor(rows, dtype=torch.int64).view(-1, 3),
            _COUNTS: torch.tensor(counts, dtype=torch.int64).view(-1, 3),
            _HOLDERS: torch.tensor(sorted(self.holders), dtype=torch.int64),
            **{f"{_ENCODER}{name}": tensor for name, tensor in self.before.items()},
        }

    def looked(self, weights: Tensors, updates: Sequence[Update]) -> Ledger:
        """After a stage in which clients looked at their samples: a new task's encoder before it is the server's."""
        said = {update.client: Holding.of_metrics(update.metrics) for update in updates}
        task, held = max(holding.task for holding in said.values()), {**self.held, **said}
        if task <= self.task:
            return replace(self, held=held)
        before = {n.removeprefix(ENCODER): t.clone() for n, t in weights.items() if n.startswith(ENCODER)}
        # It is what they have just received.
        return Ledger(task=task, before=before if task else {}, holders=frozenset(said), held=held)

    def trained(self, updates: Sequence[Update]) -> Ledger:
        """After training: who has taken part has the encoder before the task, whenever it came in."""
        held = dict(self.held)
        for update in updates:
            if _EACH in update.metrics:
                held[update.client] = held[update.client].cut(int(update.metrics[_EACH]))
        return replace(self, holders=self.holders | {update.client for update in updates}, held=held)

    @staticmethod
    def cut_to(each: int) -> dict[str, float]:
        """The figures of a training update whose client has given up what is more than so many of a class."""
        return {_EACH: float(each)}

    def before_tensors(self) -> Tensors:
        """By the names of a step's tensors."""
        return {f"{BEFORE}{name}": tensor for name, tensor in self.before.items()}
