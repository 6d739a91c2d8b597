"""A client's training without gradients: scalars for the server, or steps of its own, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedhybrid.methods.local import update_of
from fedhybrid.methods.zeroth.noise import SCALES, beside_gradient_bytes, direction_seed, estimated_gradient
from fedhybrid.methods.zeroth.passes import Passes, differences, kind_of, with_controls
from fedhybrid.methods.zeroth.server import SCALARS, applied_clip, largest_entry, masks_of
from fedhybrid.models.perturbed import PART, draw_names
from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.tree import Tensors, detached_copy

__all__ = ["descend", "own_room_bytes", "passes_of_batch", "trained_locally", "uploaded_scalars"]


def passes_of_batch(directions: int, *, central: bool, submodel: str) -> int:
    """Calls of a submodel's step for one batch.

    >>> [passes_of_batch(10, central=c, submodel=s) for c, s in ((False, "one-1"), (True, "one-2"), (True, "pair-1"))]
    [11, 40, 10]
    """
    kind, _, parts = submodel.rpartition("-")
    return int(parts) * (directions * (2 if central and kind == "one" else 1) + (0 if central else 1))


def _work(task: ClientTask, batches: int) -> LocalWork:
    """The batches that the task's steps go through."""
    return LocalWork(epochs=1, batch_size=task.work.batch_size, lr=task.work.lr, steps=batches)


def uploaded_scalars(
    task: ClientTask, client: ClientRuntime, *, seed: int, batches: int, directions: int, sigma: float, central: bool
) -> Update:
    """K scalars of each batch, all at the weights that the client received.

    Args:
        task: With a submodel "one" or "pair".
        client: Its data.
        seed: Of the round's directions, the same for all clients.
        batches: How many.
        directions: K.
        sigma: Length of the perturbation.
        central: Whether differences are central.
    """
    client.load(with_controls(task.weights, client))
    passes, lanes = Passes(client, task.submodel), 2 if kind_of(task.submodel) == "pair" else 1
    scalars, losses = [], []
    for number, (x, y) in enumerate(client.batches(_work(task, batches), task.seed)):
        seeds = [direction_seed(seed, batch=number, direction=direction) for direction in range(directions)]
        found, seen = differences(passes, x, y, seeds=seeds, sigma=sigma, central=central, lanes=lanes)
        scalars.append(found)
        losses.append(seen)
    return update_of(task, client, {SCALARS: torch.stack(scalars)}, losses, steps=passes.count)


def trained_locally(
    task: ClientTask, client: ClientRuntime, *, batches: int, directions: int, sigma: float, central: bool, clip: float
) -> Update:
    """A step of plain gradient descent after each batch, in place; the whole model is sent, but for what is pruned.

    The gradient is made twice, where it is clipped: first for its largest entry, then to be applied. As much of it
    exists at once as fits where a pass had its activations (`own_room_bytes`); a pass is over by then. What is drawn
    for that again and again, and the time of it, no clock counts.

    Args:
        task: With a submodel "one" or "pair".
        client: Its data.
        batches: How many.
        directions: K.
        sigma: Length of the perturbation.
        central: Whether differences are central.
        clip: Largest entry of a gradient; 0: no limit.
    """
    client.load(with_controls(task.weights, client))
    passes, lanes = Passes(client, task.submodel), 2 if kind_of(task.submodel) == "pair" else 1
    own = {name: tensor for name, tensor in client.tensors.items() if name not in (SCALES, PART)}
    names, masks, losses = draw_names(own), masks_of(own), []
    for number, (x, y) in enumerate(client.batches(_work(task, batches), task.seed)):
        seeds = [direction_seed(task.seed, batch=number, direction=direction) for direction in range(directions)]
        found, seen = differences(passes, x, y, seeds=seeds, sigma=sigma, central=central, lanes=lanes)
        losses.append(seen)
        room_bytes = own_room_bytes(client, own, batch_bytes=x.nbytes + y.nbytes)
        descend(
            own, found / directions, seeds, names, masks,
            sigma=sigma, clip=clip, lr=task.work.lr, room_bytes=room_bytes,
        )  # fmt: skip
    sent = {name: own[name].clone() for name in names}
    return replace(update_of(task, client, sent, losses, steps=passes.count), masks=detached_copy(masks))


def own_room_bytes(client: ClientRuntime, own: Tensors, *, batch_bytes: int) -> int:
    """For the tensors of a gradient that exist at once, so that a local step stays within the peak of a pass.

    That peak is what the client has been measured at so far; where memory moves in the middle of a task, the largest of
    its programs'. One parameter always has room: a pass holds the noise of a layer and its moved weight, and more.

    Args:
        client: Whose.
        own: The submodel's tensors.
        batch_bytes: Of inputs and labels.
    """
    resident_bytes = sum(tensor.nbytes for tensor in client.tensors.values()) + batch_bytes
    return client.measured_peak_bytes - resident_bytes - beside_gradient_bytes(draw_names(own), own)


def descend(
    own: Tensors,
    scalars: Tensor,
    seeds: Sequence[int],
    names: Sequence[str],
    masks: Tensors,
    *,
    sigma: float,
    clip: float,
    lr: float,
    room_bytes: float,
) -> None:
    """One step in place; see `estimated_gradient`."""
    every = partial(
        estimated_gradient,
        scalars, seeds, names, own, masks,
        sigma=sigma, room_bytes=room_bytes, generator=torch.default_generator,
    )  # fmt: skip
    factor = applied_clip(largest_entry(every()), clip) if clip else 1.0
    gradient = every()
    while (made := next(gradient, None)) is not None:
        own[made[0]].add_(made[1], alpha=-lr * factor)
        del made  # before the next run is made
