"""What clients do beside the shared training loop: look at their samples, and train on these and on exemplars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from fedhybrid.methods.memory_bank.bank import EARLIER, Bank
from fedhybrid.methods.memory_bank.herding import herded
from fedhybrid.methods.memory_bank.names import TUNE, StepName
from fedhybrid.methods.memory_bank.steps import MEMORY, OWN, ROW_OF
from fedhybrid.methods.wrapped import WrappedClient
from fedhybrid.models.memory_transformer import EMPTY
from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import LocalWork
from fedhybrid.tree import Tensors

__all__ = ["ReplayingClient", "looked_through"]


def looked_through(
    client: ClientRuntime,
    weights: Tensors,
    *,
    name: StepName,
    seen: Sequence[int],
    classes: Sequence[int],
    batch_size: int,
) -> tuple[Bank, int]:
    """The client's exemplars as they are now: those of earlier tasks seen anew, those of this task chosen anew.

    Beside the step's memory the features of one class are held at a time.

    Args:
        client: With what it has kept.
        weights: Of the encoder.
        name: Of the step; lists that are longer than its memory has room for lose their tails.
        seen: Classes so far.
        classes: Of the task.
        batch_size: Of a step.

    Returns:
        The exemplars, and how many steps that took.
    """
    each = name.each
    labels = client.labels
    x, _ = client.batch(torch.zeros(min(1, client.num_samples), dtype=torch.int64))
    before = Bank.of_state(client.state)
    before = None if before is None else before.forgetting_positions().without(classes).first(each)
    before = before if before is not None and len(before) else None
    memory = {n: torch.full_like(t, EMPTY) for n, t in client.tensors.items() if n.startswith(MEMORY)}
    if before is not None:
        memory = before.buffers(before.places(seen, each), name.seen * each, inputs=True)
    client.load({**weights, **memory})
    own = [torch.nonzero(labels == label).flatten() for label in sorted(set(labels.tolist()))]
    features = _Features(client, before, torch.cat(own) if own else labels[:0], batch_size)
    bank = Bank.empty(x.shape[1:], 0) if before is None else before
    if before is not None:
        bank = Bank(
            inputs=before.inputs, features=features.next(len(before)).half(), labels=before.labels, at=before.at
        )
    for positions in own:
        found = features.next(len(positions))
        order = herded(found, each)
        at = positions[order]
        inputs, its = client.batch(at)
        chosen = Bank(inputs=inputs, features=found[order].half(), labels=its, at=at)
        bank = chosen if not len(bank) else bank.and_also(chosen)
    return bank, features.steps


class _Features:
    """Features of exemplars and then of samples, a batch at a time, as many as are asked for."""

    def __init__(self, client: ClientRuntime, bank: Bank | None, positions: Tensor, batch_size: int) -> None:
        held = 0 if bank is None else len(bank)
        ids = torch.cat([torch.arange(held), held + positions])
        self._batches = self._all(client, bank, ids, held, batch_size)
        self._left: Tensor | None = None
        self.steps = 0

    def next(self, count: int) -> Tensor:
        """The next so many, (count, d)."""
        parts = [] if self._left is None else [self._left]
        while sum(map(len, parts)) < count:
            parts.append(next(self._batches))
            self.steps += 1
        rows = torch.cat(parts)
        self._left = rows[count:].clone()
        return rows[:count]

    @staticmethod
    def _all(client: ClientRuntime, bank: Bank | None, ids: Tensor, held: int, size: int) -> Iterator[Tensor]:
        for part in torch.split(ids, size):
            filled = part[torch.arange(size) % len(part)]  # a step takes full batches alone
            x, y = _mixed(client, bank, filled, held)
            yield client.step(x, y)[1][: len(part)].clone()


def _mixed(client: ClientRuntime, bank: Bank | None, ids: Tensor, held: int) -> tuple[Tensor, Tensor]:
    """Samples by number: exemplars from 0 on, the client's own from `held` on."""
    if bank is None or not held:
        return client.batch(ids)
    stored, own = ids < held, ids >= held
    if not bool(own.any()):
        return bank.inputs[ids], bank.labels[ids]
    its, its_labels = client.batch(ids[own] - held)
    x = its.new_empty(len(ids), *its.shape[1:])
    y = its_labels.new_empty(len(ids))
    x[own], y[own] = its, its_labels
    x[stored], y[stored] = bank.inputs[ids[stored]], bank.labels[ids[stored]]
    return x, y


@final
class ReplayingClient(WrappedClient):
    """Another client, whose batches mix its samples with the exemplars of earlier tasks, and whose step has a memory.

    In a task's last round (kind "tune") batches come from the exemplars alone.
    """

    def __init__(self, client: ClientRuntime, *, bank: Bank, name: StepName, seen: Sequence[int], classes: int) -> None:
        """Nothing happens yet.

        Args:
            client: Who does the work.
            bank: Its exemplars; no more of a class than the step's memory has room for.
            name: Of the step.
            seen: Classes in the order of the step's rows.
            classes: Of the data set.
        """
        super().__init__(client)
        self._bank, self._name = bank, name
        places = bank.places(seen, name.each)
        self._buffers = bank.buffers(places, name.seen * name.each, inputs=True)
        self._buffers[ROW_OF] = torch.zeros(classes, dtype=torch.int64)
        self._buffers[ROW_OF][torch.tensor(list(seen))] = torch.arange(len(seen))
        # What is drawn from goes by numbers: exemplars first, then the client's own samples.
        current = bank.at != EARLIER
        if name.kind == TUNE:
            self._drawn = torch.arange(len(bank))
            self._entry = places
        else:
            earlier = torch.nonzero(~current).flatten()
            self._drawn = torch.cat([earlier, len(bank) + torch.arange(client.num_samples)])
            self._entry = torch.full((len(bank) + client.num_samples,), -1)
            self._entry[: len(bank)] = places
            self._entry[len(bank) + bank.at[current]] = places[current]

    def load(self, weights: Tensors) -> None:
        """Sets the step's tensors: the model from `weights`, the memory from the client's exemplars."""
        own = {OWN: torch.full((self._name.batch,), -1)} if self._name.batch else {}
        self._client.load({**weights, **self._buffers, **own})

    def draws(self, work: LocalWork, seed: int, *, among: Tensor | None = None) -> Iterator[Tensor]:
        """Numbers of samples and exemplars, from both alike."""
        return self._client.draws(work, seed, among=self._drawn if among is None else among)

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The samples and exemplars of these numbers; the next step is theirs."""
        if self._name.batch:
            self._client.tensors[OWN].copy_(self._entry[positions])
        return _mixed(self._client, self._bank, positions, len(self._bank))
