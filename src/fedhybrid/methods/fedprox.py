"""FedProx: FedAvg whose clients are pulled back towards the global model.

Source: T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in Heterogeneous
Networks", MLSys 2020, https://arxiv.org/abs/1812.06127
Follows: Algorithm 2 and Eq. 2, the local objective h_k(w; w^t) = F_k(w) + (mu / 2) ||w - w^t||^2, minimised inexactly
by local epochs of the configured optimizer; w^t is the global model that the task starts from.
Differs: the paper draws clients with probability n_k / n and averages their models equally; here a policy chooses and
the mean is weighted by samples, as in FedAvg. Every device does all of its epochs (partial work needs a deadline).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from fedhybrid.errors import ConfigError
from fedhybrid.executor import Proximal
from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.protocols import Optimizer

__all__ = ["FedProx"]


@final
@dataclass(frozen=True, kw_only=True)
class FedProx(AbstractAveraging):
    """FedAvg with a proximal term of strength `mu` in the local objective; runs the unplanned step.

    Attributes:
        mu: Strength of the pull, at least 0; 0 is FedAvg. The paper tunes it over 0.001, 0.01, 0.1 and 1.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and self.mu >= 0):
            raise ConfigError(f"mu must be at least 0, got {self.mu}")

    @property
    def plans(self) -> bool:
        """No plans: each client runs the whole step as it is."""
        return False

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer on the gradient of the proximal objective."""
        return Proximal(base=base, mu=self.mu)
