"""A client whose batches and steps are looked at while the shared training loop runs: a layer round another client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor

from fedhybrid.methods.sparse.forgetting import History, seen
from fedhybrid.methods.wrapped import WrappedClient
from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import LocalWork

__all__ = ["WatchedClient", "loss_and_correctness"]


def loss_and_correctness(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """A loss whose second result has for each sample a row of its loss and whether it is classified rightly (0 or 1).

    Args:
        loss_fn: Gives the scalar and the loss of each sample.
    """

    def both(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, losses = loss_fn(scores, labels)
        correct = (scores.detach().argmax(dim=1) == labels).to(losses.dtype)
        return loss, torch.stack([losses.detach(), correct], dim=1)

    return both


@final
class WatchedClient(WrappedClient):
    """Another client, of whose samples a history is kept, and of whose batches the last may be held back.

    Attributes:
        history: Of the samples, up to the last step; None where nobody asked for it.
        held_back: The batch that `batches` did not give out.
    """

    def __init__(
        self, client: ClientRuntime, *, history: History | None, among: Tensor | None = None, hold_back: bool = False
    ) -> None:
        """Nothing happens yet.

        Args:
            client: Who does the work. With a history its steps must give `loss_and_correctness`.
            history: What is known of its samples.
            among: Positions of the samples to train on; all where None.
            hold_back: Whether the last batch is held back.
        """
        self.history = history
        self.held_back: tuple[Tensor, Tensor] | None = None
        super().__init__(client)
        self._among, self._hold_back = among, hold_back
        self._positions: Tensor | None = None

    def draws(self, work: LocalWork, seed: int, *, among: Tensor | None = None) -> Iterator[Tensor]:
        """Positions, from those that are trained on."""
        return self._client.draws(work, seed, among=self._among if among is None else among)

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at these positions; the next step is theirs."""
        self._positions = positions
        return self._client.batch(positions)

    def batches(self, work: LocalWork, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from the samples that are trained on, without the one that is held back."""
        waiting: Tensor | None = None
        for positions in self.draws(work, seed):
            if not self._hold_back:
                yield self.batch(positions)
            elif waiting is not None:
                yield self.batch(waiting)
            waiting = positions
        if self._hold_back and waiting is not None:
            self.held_back = self._client.batch(waiting)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One training step; what it says of the batch's samples goes into the history."""
        loss, rows = self._client.step(x, y)
        if self.history is None:
            return loss, rows
        assert self._positions is not None
        self.history = seen(self.history, self._positions, rows[:, 1] > 0.5)
        return loss, rows[:, 0]
