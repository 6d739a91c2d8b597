"""The client's loop that every method shares."""

from __future__ import annotations

import torch

from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import ClientTask, Update

__all__ = ["train_locally"]


def train_locally(task: ClientTask, client: ClientRuntime) -> Update:
    """Ordinary mini-batch training from the task's weights over the client's data.

    Losses are summed in float64 in the order of the batches, without waiting for each step's number.
    """
    client.load(task.weights)
    loss_sum = torch.zeros((), dtype=torch.float64)
    squared_sum = torch.zeros((), dtype=torch.float64)
    steps = samples_seen = 0
    for x, y in client.batches(task.work, task.seed):
        _, sample_losses = client.step(x, y)
        losses = sample_losses.detach().to("cpu", torch.float64)
        loss_sum += losses.sum()
        squared_sum += losses.square().sum()
        steps += 1
        samples_seen += len(losses)
    return Update(
        client=task.client,
        round_index=task.round_index,
        weights=client.weights(),
        num_samples=client.num_samples,
        samples_seen=samples_seen,
        steps=steps,
        loss_mean=loss_sum.item() / max(samples_seen, 1),
        squared_loss_sum=squared_sum.item(),
        measured_peak_bytes=client.measured_peak_bytes,
    )
