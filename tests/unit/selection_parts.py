"""Candidates and outcomes that tests of selection policies share."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedhybrid.records import COMPLETED, Candidates, Outcome

CLIENTS = 6


def candidates(clients: int = CLIENTS, **changes: Any) -> Candidates:
    plain: dict[str, Any] = {
        "client": np.arange(clients),
        "tier": np.zeros(clients, np.int64),
        "budget_bytes": np.full(clients, 100),
        "num_samples": np.full(clients, 10),
        "label_counts": np.full((clients, 2), 5),
        "unplanned_bytes": 100,
        "smallest_bytes": 40,
        "step_s": np.ones(clients),
        "kernel_s": np.full(clients, 0.5),
        "round_s": np.full(clients, 60.0),
    }
    return Candidates(**plain | changes)


def outcome(
    client: int, loss: float | None, *, round_index: int = 0, samples: int = 10, kind: str = COMPLETED
) -> Outcome:
    return Outcome(
        client=client, round_index=round_index, squared_loss_mean=loss, num_samples=samples, duration_s=1.0, kind=kind
    )


def all_tried(losses: list[float | None]) -> list[Outcome]:
    return [outcome(client, loss) for client, loss in enumerate(losses)]
