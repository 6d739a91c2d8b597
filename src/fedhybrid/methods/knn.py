"""Nearest exemplars: trained like replay, and each client answers by a vote of the exemplars nearest to the query.

Source: T. M. Cover, P. E. Hart, "Nearest neighbor pattern classification", IEEE Transactions on Information Theory 13,
1967, https://doi.org/10.1109/TIT.1967.1053964
Follows: the rule, with the k nearest by cosine.
Differs: votes are weighted by exp(cosine / temperature); features and exemplars are those of `methods/replay.py`. The
server, which has no exemplars, answers with the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from fedhybrid.errors import ConfigError
from fedhybrid.methods.memory_bank import AbstractMemory, Losses, MemoryRules

__all__ = ["Knn"]


@final
@dataclass(frozen=True, kw_only=True)
class Knn(AbstractMemory):
    """Replay whose clients let the nearest exemplars vote.

    Attributes:
        exemplars: Of a class, on each client.
        total_exemplars: Of all classes, on each client; above 0 it replaces `exemplars`.
        least_exemplars: A client whose memory does not hold as many keeps half, and so on down to this; 0: never.
        neighbours: k, that vote.
        temperature: Small: the nearest one decides.
        distillation: Weight of 1 - cosine of the features to those of the encoder before the task.
        scale: Of the cosines, to begin with; it is trained.
        tune_epochs: Passes over all exemplars, with the encoder frozen, in a task's last round; 0: none.
        tune_lr_ratio: Of the learning rate, then.
    """

    exemplars: int = 20
    total_exemplars: int = 0
    least_exemplars: int = 0
    neighbours: int = 10
    temperature: float = 0.1
    distillation: float = 5.0
    scale: float = 10.0
    tune_epochs: int = 20
    tune_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        problems = self.rules.problems()
        if self.neighbours < 1:
            problems.append(f"neighbours must be at least 1, got {self.neighbours}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            problems.append(f"temperature must be above 0, got {self.temperature}")
        if problems:
            raise ConfigError(problems)

    @property
    def rules(self) -> MemoryRules:
        """As the options say."""
        return MemoryRules(
            exemplars=self.exemplars,
            total=self.total_exemplars,
            least=self.least_exemplars,
            losses=Losses(distillation=self.distillation),
            tune_epochs=self.tune_epochs,
            tune_lr_ratio=self.tune_lr_ratio,
            scale=self.scale,
            neighbours=self.neighbours,
            temperature=self.temperature,
        )
