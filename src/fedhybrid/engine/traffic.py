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
        asked_bytes: Of the client's questions.
        answered_bytes: Of the server's answers.
    """

    update: Update
    payload: bytes | None = None
    served: Tensors = field(default_factory=dict)
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
        self._sent: OrderedDict[int, tuple[Tensors, Tensors, int]] = OrderedDict()

    def sent_down(self, weights: Tensors, *, version: int) -> tuple[Tensors, int]:
        """What arrives of a model, and how many bytes it takes; one version of it is packed once, for everybody."""
        known = self._sent.get(id(weights))
        if known is None:
            if self.down.is_identity or not weights:
                known = (weights, weights, total_bytes(weights))
            else:
                seed = derive_seed(self._run_seed, purpose="down", round_index=version)
                sent = self.down.encode(weights, reference=weights, state={}, seed=seed)
                known = (weights, self.down.decode(sent.payload, reference=weights).values, sent.num_bytes)
            self._sent[id(weights)] = known
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
