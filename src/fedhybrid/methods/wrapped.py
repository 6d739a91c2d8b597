"""A client round another client: what a method changes of it, it overrides; all else is the other's."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import LocalWork
from fedhybrid.tree import Tensors

__all__ = ["WrappedClient"]


class WrappedClient:
    """Implements `protocols.ClientRuntime` by another one; `batches` goes through its own `draws` and `batch`."""

    def __init__(self, client: ClientRuntime) -> None:
        """Nothing happens yet.

        Args:
            client: Who does the work.
        """
        self._client = client

    @property
    def num_samples(self) -> int:
        """Training samples on this client."""
        return self._client.num_samples

    @property
    def buffers(self) -> frozenset[str]:
        """Names of the submodel's tensors that no gradient changes."""
        return self._client.buffers

    @property
    def state(self) -> Tensors:
        """What the client has kept."""
        return self._client.state

    @property
    def labels(self) -> Tensor:
        """The label of each of its samples."""
        return self._client.labels

    @property
    def tensors(self) -> Tensors:
        """The submodel itself."""
        return self._client.tensors

    @property
    def measured_peak_bytes(self) -> int:
        """Peak of one real step."""
        return self._client.measured_peak_bytes

    def load(self, weights: Tensors) -> None:
        """Sets the submodel."""
        self._client.load(weights)

    def weights(self) -> Tensors:
        """A copy of the submodel as it is now."""
        return self._client.weights()

    def exchange(self, question: Tensors) -> Tensors:
        """The server's answer."""
        return self._client.exchange(question)

    def draws(self, work: LocalWork, seed: int, *, among: Tensor | None = None) -> Iterator[Tensor]:
        """Positions of the batches' samples."""
        return self._client.draws(work, seed, among=among)

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at these positions."""
        return self._client.batch(positions)

    def batches(self, work: LocalWork, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches."""
        return map(self.batch, self.draws(work, seed))

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One training step."""
        return self._client.step(x, y)
