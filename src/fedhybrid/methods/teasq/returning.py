"""Downloads of clients that have been here before: the difference to what they last uploaded, which both sides have.

Source: ours for TEASQ-Fed, which compresses downloads but does not say against what; RECONSTRUCTED as the last model
that both sides know. Who comes for the first time gets the whole model.

How: what a client has uploaded is, once decoded, a model that the client can make itself, to the bit, as it knows what
it received and what it sent. The server keeps that model for each client whose update it has merged, and packs the
difference of the global model to it. What the packing leaves out stays as the client had it. A client must keep the
model of its last *merged* upload: one that is asked again while its update waits in the cache keeps two, the one that
the server knows and the one that it has just sent, until it hears that the second is merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedhybrid.protocols import ServerState
from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, total_bytes
from fedhybrid.updates import Pipeline

__all__ = ["packed_tasks", "remembered", "task_of_difference"]

_HAS = "has/"


def remembered(extra: Mapping[str, Tensor], updates: Iterable[Update], buffers: frozenset[str]) -> Tensors:
    """The method's tensors, with what these clients have uploaded; of several updates of a client the last counts.

    Args:
        extra: Of the server.
        updates: In order of arrival.
        buffers: Names that are not kept: they always travel as they are.
    """
    uploaded = {
        f"{_HAS}{update.client}/{name}": tensor
        for update in updates
        for name, tensor in update.weights.items()
        if name not in buffers
    }
    return {**extra, **uploaded}


def packed_tasks(
    tasks: Sequence[ClientTask], server: ServerState, chain: Pipeline, *, run_seed: int
) -> list[ClientTask]:
    """The tasks with what comes of the packed global model, one for all of them, and the exact bytes of that.

    Args:
        tasks: With the global model.
        server: Buffers travel as they are.
        chain: What the model goes through.
        run_seed: The run's.
    """
    trained = {name: tensor for name, tensor in server.weights.items() if name not in server.buffers}
    if chain.is_identity or not trained:
        return list(tasks)
    seed = derive_seed(run_seed, purpose="down", round_index=server.version)
    sent = chain.encode(trained, reference=trained, state={}, seed=seed)
    arrived = {**server.weights, **chain.decode(sent.payload, reference=trained).values}
    num_bytes = sent.num_bytes + _buffer_bytes(server.weights, server.buffers)
    return [replace(task, weights=arrived, sent_bytes=num_bytes) for task in tasks]


def _buffer_bytes(weights: Mapping[str, Tensor], buffers: frozenset[str]) -> int:
    return total_bytes({name: weights[name] for name in weights.keys() & buffers})


def task_of_difference(
    task: ClientTask, extra: Mapping[str, Tensor], buffers: frozenset[str], chain: Pipeline
) -> ClientTask:
    """The task with what its client makes of a packed difference, and the exact bytes of that.

    As it was, with the whole model, for a client that nothing is remembered of, and where nothing is compressed.

    Args:
        task: With the global model.
        extra: What is remembered.
        buffers: Names that travel as they are: a variance must not become negative on the way.
        chain: What the difference goes through, "delta" at its beginning.
    """
    trained = {name: tensor for name, tensor in task.weights.items() if name not in buffers}
    kept = {name: extra[f"{_HAS}{task.client}/{name}"] for name in trained if f"{_HAS}{task.client}/{name}" in extra}
    if chain.is_identity or not trained or kept.keys() != trained.keys():
        return task
    sent = chain.encode(trained, reference=kept, state={}, seed=derive_seed(task.seed, purpose="down"))
    arrived = chain.decode(sent.payload, reference=kept).values
    num_bytes = sent.num_bytes + _buffer_bytes(task.weights, buffers)
    return replace(task, weights={**task.weights, **arrived}, sent_bytes=num_bytes)
