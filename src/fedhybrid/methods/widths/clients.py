"""The clients' side of HeteroFL: masked classes while the shared training loop runs, and statistics of batch norm."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fedhybrid.methods.local import update_of
from fedhybrid.methods.wrapped import WrappedClient
from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors

__all__ = ["MaskedClient", "batch_statistics"]

_TRACKED = ("running_mean", "running_var")


@final
class MaskedClient(WrappedClient):
    """Another client, whose scores for classes that it has no sample of are held at zero.

    Their rows of the last layer are set to zero before the first and after every step. So these scores are zero at each
    step, and nothing flows back through them: what a mask on the scores does, without a byte more in the step.
    """

    def __init__(self, client: ClientRuntime, *, head: str) -> None:
        """Nothing happens yet.

        Args:
            client: Who does the work.
            head: Path of the last layer.
        """
        super().__init__(client)
        self._rows = [name for name in (f"{head}.weight", f"{head}.bias") if name in client.tensors]
        present = torch.zeros(len(client.tensors[self._rows[0]]), dtype=torch.bool)
        present[client.labels] = True
        self._absent = ~present

    def masks(self) -> Tensors:
        """Of the last layer's tensors, False for absent classes; empty where there are none."""
        if not self._absent.any():
            return {}
        masks = {name: torch.ones_like(self._client.tensors[name], dtype=torch.bool) for name in self._rows}
        for mask in masks.values():
            mask[self._absent] = False
        return masks

    def load(self, weights: Tensors) -> None:
        """Sets the submodel."""
        self._client.load(weights)
        self._hold()

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One training step."""
        result = self._client.step(x, y)
        self._hold()
        return result

    def _hold(self) -> None:
        if self._absent.any():
            with torch.no_grad():
                for name in self._rows:
                    self._client.tensors[name][self._absent] = 0


def batch_statistics(task: ClientTask, client: ClientRuntime) -> Update:
    """What norms measure in the model as it is: the mean over the batches of each batch's mean and variance.

    Args:
        task: Its submodel is a forward pass whose norms keep the statistics of the last batch alone.
        client: Who does it.
    """
    client.load(task.weights)
    names = [name for name in client.tensors if name.rpartition(".")[2] in _TRACKED]
    sums = {name: torch.zeros(client.tensors[name].shape, dtype=torch.float64) for name in names}
    losses: list[Tensor] = []
    for x, y in client.batches(task.work, task.seed):
        losses.append(client.step(x, y)[1].detach())
        for name in names:
            sums[name] += client.tensors[name].detach().to("cpu")
    means = {name: (total / max(len(losses), 1)).to(client.tensors[name].dtype) for name, total in sums.items()}
    return update_of(task, client, means if losses else {}, losses)
