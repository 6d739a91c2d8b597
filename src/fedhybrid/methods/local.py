"""The client's loop that every method shares."""

from __future__ import annotations

import torch

from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import ClientTask, Update

__all__ = ["train_locally"]


def train_locally(task: ClientTask, client: ClientRuntime) -> Update:
    """Ordinary mini-batch training from the task's weights over the client's data.

    The losses of the samples are kept and summed at the end, in float64: nothing waits for each step
    and a small step takes no longer for it.
    """
    client.load(task.weights)
    kept = [client.step(x, y)[1].detach() for x, y in client.batches(task.work, task.seed)]
    losses = torch.cat(kept).to("cpu", torch.float64) if kept else torch.zeros(0, dtype=torch.float64)
    return Update(
        client=task.client,
        round_index=task.round_index,
        weights=client.weights(),
        num_samples=client.num_samples,
        samples_seen=len(losses),
        steps=len(kept),
        loss_mean=losses.sum().item() / max(len(losses), 1),
        squared_loss_sum=losses.square().sum().item(),
        measured_peak_bytes=client.measured_peak_bytes,
    )
