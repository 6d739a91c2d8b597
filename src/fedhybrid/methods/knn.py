"""Nearest exemplars: trained like replay, and each client answers by a vote of the exemplars nearest to the query.

Source: T. M. Cover, P. E. Hart, "Nearest neighbor pattern classification", IEEE Transactions on Information Theory 13,
1967, https://doi.org/10.1109/TIT.1967.1053964
Follows: the rule, with the k nearest by cosine.
Differs: votes are weighted by exp(cosine / temperature); features and exemplars are those of `methods/replay.py`. The
server, which has no exemplars, answers with the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

from fedhybrid.methods.memory_bank import AbstractMemory, MemoryRules

__all__ = ["Knn"]


@final
@dataclass(frozen=True, kw_only=True)
class Knn(AbstractMemory):
    """Replay whose clients let the nearest exemplars vote; more options: `AbstractMemory`.

    Attributes:
        neighbours: k, that vote.
        temperature: Small: the nearest one decides.
    """

    neighbours: int = 10
    temperature: float = 0.1

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.neighbours < 1:
            problems.append(f"neighbours must be at least 1, got {self.neighbours}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            problems.append(f"temperature must be above 0, got {self.temperature}")
        return problems

    @property
    def rules(self) -> MemoryRules:
        """As the options say."""
        return replace(super().rules, neighbours=self.neighbours, temperature=self.temperature)
