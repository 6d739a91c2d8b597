"""FedHybrid: each client trains by an execution plan of its own, made for its memory budget.

Source: K. Tam, C. Tian, L. Li, H. Zhao, C. Xu, "FedHybrid: Breaking the Memory Wall of Federated Learning via
Hybrid Tensor Management", ACM SenSys 2024, https://arxiv.org/abs/2510.11400 (no public code)
Follows: the round of the paper (check-in, selection, plan, training by the plan, report) with FedAvg's aggregation. The
memory-aware selection is the policy `fedhybrid`, the plans are the planner's; this file joins them.
RECONSTRUCTED: the order inside a round, plans cached by graph, device and budget bucket, and the rule that a client
whose budget no plan meets is not selected.
Differs: unless a recipe says otherwise, plans recompute tensors only, and are exact (bit-identical to the unplanned
step), and come from this project's planner. The paper's greedy over saved bytes per second and its compression by
channel are the solver `greedy-mps` and the codec `channel-mix` (`recipes/methods/fedhybrid.toml`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.protocols import Optimizer

__all__ = ["FedHybrid"]


@final
@dataclass(frozen=True, kw_only=True)
class FedHybrid(AbstractAveraging):
    """Federated averaging in which every device trains inside its memory budget, by its own execution plan."""

    @property
    def plans(self) -> bool:
        """Every client gets the plan for its budget."""
        return True

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base
