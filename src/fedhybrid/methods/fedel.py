"""FedEL: a window slides over the depth of the network, and each client trains in it what is worth most in its time.

Source: L. Zhang, B. Chen, J. Bian, L. Wang, J. Xu, "FedEL: Federated Elastic Learning for Heterogeneous Devices",
NeurIPS 2025, https://arxiv.org/abs/2509.16902
Follows: one time for a step of every client (by default that of a whole step on the fastest kind of device); blocks,
and a window of consecutive ones that slides from the input to the output by what each client's device takes; an early
exit at its end; in it the tensors are chosen by dynamic programming, by a blend of the client's own importance
(ElasticTrainer's, on one batch) and of how far the last round moved each tensor; only these are sent, and each tensor
is averaged over those who sent it. FedEL-C is `variant="c"`; FedProx's term comes with `mu`.
RECONSTRUCTED: the form of exits (mean, then one linear layer; shared and averaged like any tensor), the sum over a
tensor and the scaling of the common importance, what is trained when nothing keeps to the time (the quickest tensor of
the last part), that a tensor that nobody trained stays.
Differs: the mean weighs by samples. The time is compared step by step, so clients with more data still take longer.
Importance is asked for in the window alone unless `importance_scope = "full"`: a device that must save memory has no
whole backward pass. The server blends and chooses, from numbers that clients send. A window whose forward pass alone
takes longer than the time is left out, and the slide begins again, unless `overrun`. Memory counts too: steps are
planned for each client's budget, and tensors that do not fit even so are left out, the lowest first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from fedhybrid.errors import ConfigError
from fedhybrid.executor import Proximal
from fedhybrid.methods.elastic import AbstractElastic, Rules
from fedhybrid.protocols import Optimizer

__all__ = ["FedEL"]

_VARIANTS = ("", "c")
_SCOPES = ("window", "full")


@final
@dataclass(frozen=True, kw_only=True)
class FedEL(AbstractElastic):
    """Each client trains the most important tensors of a sliding window, in the time of the fastest one's whole step.

    Attributes:
        beta: Weight of a client's own importance beside the common one, 0 to 1.
        time_ratio: Time of a step, as a share of the whole step of the fastest kind of device; above 0.
        variant: "" lets windows overlap where tensors were chosen, "c" begins each behind the last (FedEL-C).
        importance_scope: "window", or "full": through the whole depth, before the window slides, as in the paper.
        overrun: Whether a window is trained of which not even the forward pass is done in time.
        mu: Strength of FedProx's pull towards the global model, at least 0.
    """

    beta: float = 0.6
    time_ratio: float = 1.0
    variant: str = ""
    importance_scope: str = "window"
    overrun: bool = False
    mu: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.beta <= 1:
            problems.append(f"beta must be from 0 to 1, got {self.beta}")
        if not (math.isfinite(self.time_ratio) and self.time_ratio > 0):
            problems.append(f"time_ratio must be a positive number, got {self.time_ratio}")
        if self.variant not in _VARIANTS:
            problems.append(f"variant must be '' or 'c', got {self.variant!r}")
        if self.importance_scope not in _SCOPES:
            problems.append(f"importance_scope must be 'window' or 'full', got {self.importance_scope!r}")
        if not (math.isfinite(self.mu) and self.mu >= 0):
            problems.append(f"mu must be at least 0, got {self.mu}")
        if problems:
            raise ConfigError(problems)

    @property
    def rules(self) -> Rules:
        """A window that slides."""
        return Rules(
            window=True,
            contiguous=self.variant == "c",
            beta=self.beta,
            time_ratio=self.time_ratio,
            whole_probe=self.importance_scope == "full",
            overrun=self.overrun,
        )

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer, on FedProx's objective where there is a pull."""
        return Proximal(base=base, mu=self.mu) if self.mu else base
