"""What goes over the links: models down, updates up, each through its pipeline, counted to the byte."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import final

import torch

from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, total_bytes
from fedhybrid.updates import Pipeline, exact_bytes

__all__ = ["Delivery", "Traffic"]

_FIGURE_BYTES = 8  # of each figure in a reply that holds no tensors
_REMEMBERED = 8  # models that were sent last: a cohort gets the same one


@dataclass(frozen=True, kw_only=True, eq=False)
class Delivery:
    """What comes of a task: the client's update and, where a pipeline has packed its tensors, the bytes that travel.

    With a payload the update's own `weights` and `masks` are empty: they are in the payload.

    Attributes:
        update: The client's.
        payload: Of the update's tensors.
        served: What was trained at the server in the meantime (`Attendant.result`); it never travels.
        served_s: Virtual seconds that the server took to answer, while the client waited.
        asked_bytes: Of the client's questions.
        answered_bytes: Of the server's answers.
    """

    update: Update
    payload: bytes | None = None
    served: Tensors = field(default_factory=dict)
    served_s: float = 0.0
    asked_bytes: int = 0
    answered_bytes: int = 0


@final
class Traffic:
    """The two directions. An empty pipeline sends tensors as they are: the bytes of their elements.

    Attributes:
        down: From the server.
        up: From the clients; its reference is the model that the client received or, where the method sends
            differences, nothing but zeros.
    """

    def __init__(
        self, *, down: Pipeline, up: Pipeline, differences: bool, buffers: frozenset[str] = frozenset(), run_seed: int
    ) -> None:
        self.down, self.up, self._run_seed = down, up, run_seed
        self._differences, self._buffers = differences, buffers
        # By identity: the same dictionary is given to a whole cohort; it is kept so that its identity stays its own.
        self._sent: OrderedDict[tuple[int, tuple[str, ...] | None], tuple[Tensors, Tensors, int]] = OrderedDict()

    def sent_down(self, weights: Tensors, *, version: int, names: tuple[str, ...] | None = None) -> tuple[Tensors, int]:
        """What a client has of a model then, and how many bytes it takes; one version is packed once, for everybody.

        Args:
            weights: The model.
            version: Of the server.
            names: Of the tensors that travel; None: all. The client has the others.
        """
        known = self._sent.get((id(weights), names))
        if known is None:
            part = weights if names is None else {name: weights[name] for name in names}
            if self.down.is_identity or not weights:
                known = (weights, weights, total_bytes(part))
            else:
                seed = derive_seed(self._run_seed, purpose="down", round_index=version)
                # What does not travel now once came the same way: not even that is the server's own to the last bit.
                sent = self.down.encode(weights, reference=weights, state={}, seed=seed)
                arrived = self.down.decode(sent.payload, reference=weights).values
                num_bytes = sent.num_bytes if names is None else self.down.expected_bytes(part) if part else 0
                known = (weights, arrived, num_bytes)
            self._sent[id(weights), names] = known
            while len(self._sent) > _REMEMBERED:
                self._sent.popitem(last=False)
        return known[1], known[2]

    def expected_bytes(self, weights: Tensors) -> tuple[int, int]:
        """Of a whole model down and a whole update up; exact, as no transform's size depends on values."""
        return self.down.expected_bytes(weights), self.up.expected_bytes(weights)

    def bytes_up(self, delivery: Delivery) -> int:
        """What a delivery takes on the uplink."""
        if delivery.payload is not None:
            return len(delivery.payload)
        update = delivery.update
        if not update.weights:
            return _FIGURE_BYTES * len(update.metrics)
        return exact_bytes(update.weights, update.masks)

    def packed(self, update: Update, task: ClientTask, before: Tensors) -> Delivery:
        """The update as the client sends it; `before` is what it had kept, the pipeline's own state among it."""
        if self.up.is_identity or not update.weights:
            return Delivery(update=update)
        sent = self.up.encode(
            self._moved(update.weights, task.weights, sign=-1),
            reference=self._reference(task.weights),
            state=before,
            seed=task.seed,
            masks=update.masks,
        )
        kept = before if update.state is None else update.state
        state = {**kept, **sent.state} if sent.state else update.state
        return Delivery(update=replace(update, weights={}, masks={}, state=state), payload=sent.payload)

    def unpacked(self, delivery: Delivery, received: Tensors) -> Update:
        """The update as the server reads it; `received` is the model that the client had.

        Raises:
            ConfigError: The payload is not what the pipeline sends.
        """
        update = delivery.update
        if delivery.payload is not None:
            read = self.up.decode(delivery.payload, reference=self._reference(received))
            update = replace(update, weights=self._moved(read.values, received, sign=1), masks=read.masks)
        return replace(update, weights={**update.weights, **delivery.served}) if delivery.served else update

    def _moved(self, values: Tensors, received: Tensors, *, sign: int) -> Tensors:
        """Among differences, buffers travel as differences too, and are themselves at both ends."""
        if not self._differences:
            return values
        moved = {name: values[name] + sign * received[name] for name in values.keys() & self._buffers}
        return {name: moved.get(name, tensor) for name, tensor in values.items()}

    def _reference(self, weights: Tensors) -> Tensors:
        return {name: torch.zeros_like(tensor) for name, tensor in weights.items()} if self._differences else weights
