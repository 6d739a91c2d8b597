"""A client's exemplars: per class an ordered list of samples and their features, which never leave the client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedhybrid.models.memory_transformer import EMPTY
from fedhybrid.tree import Tensors

__all__ = ["EARLIER", "Bank", "room_for"]

EARLIER = -1  # position of an exemplar whose task is over: the client holds it as an exemplar alone
_STATE = "memory/"


def room_for(each: int, total: int, seen: int) -> int:
    """Exemplars of a class: `each`, or where `total` is above 0 an equal part of that, at least one."""
    return max(1, total // seen) if total else each


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """Exemplars in lists, class after class, each in the order of herding.

    Attributes:
        inputs: Raw, (n, ...).
        features: Normalised, float16 (n, d).
        labels: Class numbers, int64 (n,).
        at: Position among the client's samples of the current task, or `EARLIER`; int64 (n,).
    """

    inputs: Tensor
    features: Tensor
    labels: Tensor
    at: Tensor

    @classmethod
    def empty(cls, input_shape: Sequence[int], width: int) -> Bank:
        """Nothing yet."""
        return cls(
            inputs=torch.zeros(0, *input_shape),
            features=torch.zeros(0, width, dtype=torch.float16),
            labels=torch.zeros(0, dtype=torch.int64),
            at=torch.zeros(0, dtype=torch.int64),
        )

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Bank | None:
        """What a client has kept; None before its first task."""
        if f"{_STATE}labels" not in state:
            return None
        return cls(**{name: state[f"{_STATE}{name}"] for name in ("inputs", "features", "labels", "at")})

    def as_state(self) -> Tensors:
        """What the client keeps."""
        return {f"{_STATE}{name}": getattr(self, name) for name in ("inputs", "features", "labels", "at")}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> dict[int, int]:
        """Exemplars of each class that has some."""
        return dict(sorted(Counter(self.labels.tolist()).items()))

    def chosen(self, which: Tensor) -> Bank:
        """Some entries, by number or mask."""
        return Bank(
            inputs=self.inputs[which], features=self.features[which], labels=self.labels[which], at=self.at[which]
        )

    def first(self, each: int) -> Bank:
        """The first exemplars of each class: the tails are dropped."""
        return self.chosen(self._ranks() < each)

    def without(self, classes: Sequence[int]) -> Bank:
        """Those of other classes."""
        return self.chosen(~torch.isin(self.labels, torch.tensor(list(classes), dtype=torch.int64)))

    def forgetting_positions(self) -> Bank:
        """The same when a task is over: its samples are gone."""
        return Bank(
            inputs=self.inputs,
            features=self.features,
            labels=self.labels,
            at=torch.full_like(self.at, EARLIER),
        )

    def and_also(self, other: Bank) -> Bank:
        """These, then the other's."""
        return Bank(
            inputs=torch.cat([self.inputs, other.inputs]),
            features=torch.cat([self.features, other.features]),
            labels=torch.cat([self.labels, other.labels]),
            at=torch.cat([self.at, other.at]),
        )

    def places(self, classes: Sequence[int], each: int) -> Tensor:
        """Entry of a step's memory for each exemplar: class number i of `classes` has the entries from i * each on."""
        row = {label: number for number, label in enumerate(classes)}
        rows = torch.tensor([row[label] for label in self.labels.tolist()], dtype=torch.int64)
        return rows * each + self._ranks()

    def buffers(self, places: Tensor, entries: int, *, inputs: bool) -> Tensors:
        """The memory of a step (`models.memory_transformer.Memory`), by the names of its buffers.

        Args:
            places: Of the exemplars.
            entries: Of the memory.
            inputs: Whether it has the raw inputs, too.
        """
        made = {
            "memory.features": self.features.new_zeros(entries, self.features.shape[1]),
            "memory.labels": torch.full((entries,), EMPTY),
        }
        made["memory.features"][places] = self.features
        made["memory.labels"][places] = self.labels
        if inputs:
            made["memory.inputs"] = self.inputs.new_zeros(entries, *self.inputs.shape[1:])
            made["memory.inputs"][places] = self.inputs
        return made

    def _ranks(self) -> Tensor:
        """Number of each exemplar in the list of its class."""
        ranks = torch.zeros_like(self.labels)
        for label in self.counts:
            mine = self.labels == label
            ranks[mine] = torch.arange(int(mine.sum()))
        return ranks
