"""How many samples a client is asked for each round, when it may not be back in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Load", "best_load"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """A client's fixed part of each round.

    Attributes:
        steps: Batches of its own samples, the same ones in every round.
        samples: How many samples those are.
        arrival: Probability that it is back in time.
    """

    steps: int
    samples: int
    arrival: float

    @property
    def expected(self) -> float:
        """Samples whose gradients come in a round, on average."""
        return self.samples * self.arrival


def best_load(held: int, batch_size: int, arrival: Callable[[int], float]) -> Load:
    """The load of which most comes back, the smaller of equal ones.

    Source: S. Prakash et al., "Coded Computing for Low-Latency Federated Learning over Wireless Edge Networks", IEEE
    JSAC 2021, the per-client problem of its load allocation, here over whole batches.

    Args:
        held: Samples of the client, at least 1.
        batch_size: Of a step.
        arrival: Probability that the client is back in time after so many steps.
    """
    loads = [
        Load(steps=steps, samples=min(steps * batch_size, held), arrival=arrival(steps))
        for steps in range(1, -(-held // batch_size) + 1)
    ]
    return max(loads, key=lambda load: (load.expected, -load.steps))
