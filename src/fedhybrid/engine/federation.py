"""What one run is made of, after the configuration has been read: everything built, nothing started."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from fedhybrid.data import Dataset
from fedhybrid.executor import PlanOptions
from fedhybrid.fleet import Fleet
from fedhybrid.protocols import Method, Optimizer, Policy
from fedhybrid.records import IntArray, LocalWork

__all__ = ["Federation", "RunNames"]


@dataclass(frozen=True, kw_only=True)
class RunNames:
    """What the parts are called in the recipe; only for records and messages."""

    method: str
    policy: str
    dataset: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The parts of a run.

    Attributes:
        names: The parts' names in the recipe.
        dataset: Images and labels; the test split measures accuracy.
        shards: For each client the indices of its training samples.
        fleet: Tier, budget and device of each client.
        model: The global model with its initial weights; the run trains in it.
        method: The published system.
        policy: Chooses the cohorts.
        optimizer: The clients' optimizer, as the method made it.
        work: How much a client trains in a round.
        clients_per_round: Largest cohort.
        rounds: Rounds in all.
        seed: All randomness derives from it.
        plans: Whether clients get plans for their budgets.
        codec: What packs every eligible tensor of every client's step instead, or None.
        planning: How plans are made.
    """

    names: RunNames
    dataset: Dataset
    shards: tuple[IntArray, ...]
    fleet: Fleet
    model: nn.Module
    method: Method
    policy: Policy
    optimizer: Optimizer
    work: LocalWork
    clients_per_round: int
    rounds: int
    seed: int
    plans: bool
    codec: str | None
    planning: PlanOptions

    @property
    def num_samples(self) -> IntArray:
        """Training samples of each client."""
        return np.array([len(shard) for shard in self.shards], dtype=np.int64)
