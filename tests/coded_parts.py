"""Five devices whose samples differ, and a server that has coded rows."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fedhybrid.methods.coded import CodedSet, split
from fedhybrid.protocols import ServerState
from fedhybrid.records import Update


def devices(features: int = 8, classes: int = 3, held: int = 40, count: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Samples of each device, whose distributions differ, in float64."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for device in range(count):
        x = torch.randn(held, features, generator=generator, dtype=torch.float64) + 0.1 * device
        labels = torch.randint(device % classes + 1, (held,), generator=generator)
        found.append((x, torch.eye(classes, dtype=torch.float64)[labels]))
    return found


def full_gradient(held: list[tuple[Tensor, Tensor]], weight: Tensor) -> Tensor:
    return cast(Tensor, sum(x.mT @ (x @ weight - y) for x, y in held))


def weights_of(features: int = 8, classes: int = 3) -> Tensor:
    return torch.randn(features, classes, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def update(client: int, changes: dict[str, Tensor], **metrics: float) -> Update:
    return Update(
        client=client, round_index=0, weights=changes, num_samples=40, samples_seen=8, steps=1, loss_mean=1.0,
        squared_loss_sum=1.0, measured_peak_bytes=1, metrics=metrics,
    )  # fmt: skip


def coded_server(weight: Tensor, sigma: float = 0.5, steps: int = 1) -> tuple[ServerState, CodedSet]:
    generator = torch.Generator().manual_seed(4)
    held = CodedSet(
        head="head",
        x=torch.randn(20, 8, generator=generator, dtype=torch.float64) * 10,
        y=torch.randn(20, 3, generator=generator, dtype=torch.float64),
        clients=torch.arange(5),
        samples=torch.full((5,), 40),
        sigma=torch.full((5,), sigma, dtype=torch.float64),
        largest=torch.ones(5, dtype=torch.float64),
        lr=torch.tensor(0.1, dtype=torch.float64),
        steps=torch.full((5,), steps),
        seed=torch.tensor(6),
    )
    weights = {"body.weight": torch.ones(2), **split(weight, ["head.weight"])}
    return ServerState(weights=weights, extra=held.to_extra(), version=3), held
