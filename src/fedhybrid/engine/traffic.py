"""What goes over the links: models down, updates up, each through its pipeline, counted to the byte."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import final

import torch

from fedhybrid.errors import ConfigError
from fedhybrid.protocols import Transport
from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, total_bytes
from fedhybrid.updates import Pipeline, exact_bytes, parse_pipeline

__all__ = ["Delivery", "Traffic"]

_FIGURE_BYTES = 8  # of each figure in a reply that holds no tensors
_REMEMBERED = 8  # models that were sent last: a cohort gets the same one
_VERSIONS = 64  # of the server, whose pipelines are kept; those of others are made anew when they are asked for

_Key = tuple[int, tuple[str, ...] | None, Pipeline]


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

    The pipelines are the recipe's or, where the method says what goes over the links (`Method.transport`), those of the
    server's version that a task was given out at; both sides know it.
    """

    def __init__(
        self,
        *,
        down: Pipeline,
        up: Pipeline,
        differences: bool,
        buffers: frozenset[str] = frozenset(),
        run_seed: int,
        transport: Callable[[int], Transport | None] | None = None,
    ) -> None:
        """From the recipe's pipelines and what the method says.

        Args:
            down: From the server.
            up: From the clients; its reference is the model that the client received or, where the method sends
                differences, nothing but zeros.
            differences: Whether it does.
            buffers: Names of tensors that no gradient changes.
            run_seed: The run's.
            transport: The method's own pipelines.

        Raises:
            ConfigError: Recipe and method both say what goes over the links, or the method says what cannot be.
        """
        self._recipe, self._run_seed = (down, up), run_seed
        self._transport = transport or _nothing_said
        self._differences, self._buffers = differences, buffers
        self._pipelines = lru_cache(maxsize=_VERSIONS)(self._pipelines_made)
        if (down.parts or up.parts) and self._transport(0) is not None:
            raise ConfigError(
                "traffic: the method says itself what goes over the links, with the options that it has here; take "
                "[traffic] out of the recipe, or switch the method's own compression off"
            )
        self._pipelines(0)
        # By identity: the same dictionary is given to a whole cohort; it is kept so that its identity stays its own.
        self._sent: OrderedDict[_Key, tuple[Tensors, Tensors, int]] = OrderedDict()

    def sent_down(self, weights: Tensors, *, version: int, names: tuple[str, ...] | None = None) -> tuple[Tensors, int]:
        """What a client has of a model then, and how many bytes it takes; one version is packed once, for everybody.

        Args:
            weights: The model.
            version: Of the server.
            names: Of the tensors that travel; None: all. The client has the others.
        """
        down, _ = self._pipelines(version)
        key = (id(weights), names, down)
        known = self._sent.get(key)
        if known is None:
            part = weights if names is None else {name: weights[name] for name in names}
            if down.is_identity or not weights:
                known = (weights, weights, total_bytes(part))
            else:
                seed = derive_seed(self._run_seed, purpose="down", round_index=version)
                # What does not travel now once came the same way: not even that is the server's own to the last bit.
                sent = down.encode(weights, reference=weights, state={}, seed=seed)
                arrived = down.decode(sent.payload, reference=weights).values
                num_bytes = sent.num_bytes if names is None else down.expected_bytes(part) if part else 0
                known = (weights, arrived, num_bytes)
            self._sent[key] = known
            while len(self._sent) > _REMEMBERED:
                self._sent.popitem(last=False)
        return known[1], known[2]

    def expected_bytes(self, weights: Tensors, *, version: int = 0) -> tuple[int, int]:
        """Of a whole model down and a whole update up; exact, as no transform's size depends on values."""
        down, up = self._pipelines(version)
        return down.expected_bytes(weights), up.expected_bytes(weights)

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
        _, up = self._pipelines(task.round_index)
        if up.is_identity or not update.weights:
            return Delivery(update=update)
        sent = up.encode(
            self._moved(update.weights, task.weights, sign=-1),
            reference=self._reference(task.weights),
            state=before,
            seed=task.seed,
            masks=update.masks,
        )
        kept = before if update.state is None else update.state
        state = {**kept, **sent.state} if sent.state else update.state
        return Delivery(update=replace(update, weights={}, masks={}, state=state), payload=sent.payload)

    def unpacked(self, delivery: Delivery, task: ClientTask) -> Update:
        """The update as the server reads it; `task` is as the client received it.

        Raises:
            ConfigError: The payload is not what the pipeline sends.
        """
        received = task.weights
        update = delivery.update
        if delivery.payload is not None:
            _, up = self._pipelines(task.round_index)
            read = up.decode(delivery.payload, reference=self._reference(received))
            update = replace(update, weights=self._moved(read.values, received, sign=1), masks=read.masks)
        return replace(update, weights={**update.weights, **delivery.served}) if delivery.served else update

    def _pipelines_made(self, version: int) -> tuple[Pipeline, Pipeline]:
        """Down and up, of tasks that are given out at this version."""
        said = self._transport(version)
        if said is None:
            return self._recipe
        where = f"the method's transport at version {version}"
        return parse_pipeline(said.down, where=f"{where}, down"), parse_pipeline(said.up, where=f"{where}, up")

    def _moved(self, values: Tensors, received: Tensors, *, sign: int) -> Tensors:
        """Among differences, buffers travel as differences too, and are themselves at both ends."""
        if not self._differences:
            return values
        moved = {name: values[name] + sign * received[name] for name in values.keys() & self._buffers}
        return {name: moved.get(name, tensor) for name, tensor in values.items()}

    def _reference(self, weights: Tensors) -> Tensors:
        return {name: torch.zeros_like(tensor) for name, tensor in weights.items()} if self._differences else weights


def _nothing_said(version: int) -> None:
    """The transport of a method that leaves it to the recipe."""
    return
