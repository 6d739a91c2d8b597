"""The client's loop that every method shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors

__all__ = ["train_locally", "update_of"]


def train_locally(task: ClientTask, client: ClientRuntime) -> Update:
    """Ordinary mini-batch training from the task's weights over the client's data.

    The losses of the samples are kept and summed at the end, in float64: nothing waits for each step
    and a small step takes no longer for it.
    """
    client.load(task.weights)
    kept = [client.step(x, y)[1].detach() for x, y in client.batches(task.work, task.seed)]
    return update_of(task, client, client.weights(), kept)


def update_of(
    task: ClientTask, client: ClientRuntime, weights: Tensors, losses: Sequence[Tensor], *, steps: int | None = None
) -> Update:
    """What a client sends after it has done a task.

    Args:
        task: That it has done.
        client: Who did it.
        weights: To be sent.
        losses: Of the samples that it went through, batch by batch.
        steps: That it made; as many as there are batches, where None.
    """
    every = torch.cat(list(losses)).to("cpu", torch.float64) if losses else torch.zeros(0, dtype=torch.float64)
    return Update(
        client=task.client,
        round_index=task.round_index,
        weights=weights,
        num_samples=client.num_samples,
        samples_seen=len(every),
        steps=len(losses) if steps is None else steps,
        loss_mean=every.sum().item() / max(len(every), 1),
        squared_loss_sum=every.square().sum().item(),
        measured_peak_bytes=client.measured_peak_bytes,
        kind=task.kind,
    )
