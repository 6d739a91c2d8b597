"""MTN: classes come one task after the other; a transformer reads each query's neighbours among stored exemplars.

Source: A. Iscen, T. Bird, M. Caron, A. Fathi, C. Schmid, "A Memory Transformer Network for Incremental Learning",
BMVC 2022, https://arxiv.org/abs/2210.04485
Follows: the abstract and Figure 1: a memory of features of previous and current tasks, replay from it, nearest
neighbours of a query, a transformer that aggregates them and predicts.
RECONSTRUCTED, that is ours: everything else. The cosine head and distillation of features are in the manner of LUCIR
(S. Hou et al., CVPR 2019), the choice of exemplars is iCaRL's herding; the tokens, leave-one-out retrieval, the losses,
the tuning with a frozen encoder and every default are ours. While a task is on, its classes are in the memory with as
many samples as they will have, chosen anew in each round, not with all.
Differs: the paper is about one machine; all of the federated form is ours. The memory stays on its client; the network
is averaged, rows of classes over the clients that hold the class; the server, which has no memory, answers with the
base head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

from fedhybrid.methods.memory_bank import AbstractMemory, Losses, MemoryRules
from fedhybrid.models.memory_transformer import ReaderSizes

__all__ = ["Mtn"]


@final
@dataclass(frozen=True, kw_only=True)
class Mtn(AbstractMemory):
    """Replay, and a transformer over the nearest exemplars; all defaults are RECONSTRUCTED.

    More options: `AbstractMemory`.

    Attributes:
        neighbours: k, that are read; 0 leaves the base head alone.
        dim: Width of the tokens; 0: that of the features.
        depth: Layers of the transformer.
        heads: Of its attention.
        dropout: In it.
        label_tokens: Whether neighbours say their classes.
        stop_query: Whether the transformer's loss leaves the encoder alone.
        memory_weight: Of the transformer's loss.
    """

    neighbours: int = 10
    dim: int = 0
    depth: int = 1
    heads: int = 4
    dropout: float = 0.1
    label_tokens: bool = True
    stop_query: bool = True
    memory_weight: float = 1.0

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.neighbours < 0:
            problems.append(f"neighbours must be at least 0, got {self.neighbours}")
        if min(self.depth, self.heads) < 1 or self.dim < 0 or self.dim % max(1, self.heads):
            problems.append(
                "depth and heads must be at least 1, and dim 0 (that of the features) or a multiple of heads; got "
                f"depth {self.depth}, heads {self.heads}, dim {self.dim}"
            )
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not (math.isfinite(self.memory_weight) and self.memory_weight >= 0):
            problems.append(f"memory_weight must be at least 0, got {self.memory_weight}")
        return problems

    @property
    def rules(self) -> MemoryRules:
        """As the options say."""
        sizes = ReaderSizes(
            dim=self.dim, depth=self.depth, heads=self.heads, dropout=self.dropout, label_tokens=self.label_tokens
        )
        return replace(
            super().rules,
            losses=Losses(distillation=self.distillation, memory=self.memory_weight, stop_query=self.stop_query),
            neighbours=self.neighbours,
            sizes=sizes if self.neighbours else None,
        )
