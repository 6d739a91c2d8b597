"""What the server remembers of clients between tasks, as named tensors that checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedhybrid.tree import Tensors

__all__ = ["Notes"]

_PREFIX = "elastic"


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What is remembered.

    Attributes:
        trained: For each client that has trained: the last part of its window then, and the lowest part in which a
            tensor was chosen.
        probed: For each client of the last probe: its window (first and last part).
        importance: For each of these, by parameter.
        change: How far the last round moved each parameter; see `importance.change_of`.
    """

    trained: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    probed: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    importance: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    change: Mapping[str, float] = field(default_factory=dict)

    def written(self, extra: Mapping[str, Tensor], names: list[str]) -> Tensors:
        """`extra` with these notes; `names` are those of the model's parameters."""
        rows = [[self.importance[client].get(name, 0.0) for name in names] for client in sorted(self.probed)]
        own = {
            "trained": torch.tensor(_rows(self.trained), dtype=torch.int64).reshape(-1, 3),
            "probed": torch.tensor(_rows(self.probed), dtype=torch.int64).reshape(-1, 3),
            "importance": torch.tensor(rows, dtype=torch.float64).reshape(-1, len(names)),
            "change": torch.tensor([self.change.get(name, 0.0) for name in names], dtype=torch.float64),
        }
        return {**extra, **{f"{_PREFIX}.{key}": tensor for key, tensor in own.items()}}

    @classmethod
    def read(cls, extra: Mapping[str, Tensor], names: list[str]) -> Notes:
        """The notes in `extra`; empty ones before the first round."""
        stored = {key: extra.get(f"{_PREFIX}.{key}") for key in ("trained", "probed", "importance", "change")}
        lists = {key: [] if tensor is None else tensor.tolist() for key, tensor in stored.items()}
        probed = {client: (first, last) for client, first, last in lists["probed"]}
        return cls(
            trained={client: (last, lowest) for client, last, lowest in lists["trained"]},
            probed=probed,
            importance={
                client: dict(zip(names, row, strict=True))
                for client, row in zip(sorted(probed), lists["importance"], strict=True)
            },
            change=dict(zip(names, lists["change"], strict=bool(lists["change"]))),
        )


def _rows(pairs: Mapping[int, tuple[int, int]]) -> list[list[int]]:
    return [[client, *pairs[client]] for client in sorted(pairs)]
