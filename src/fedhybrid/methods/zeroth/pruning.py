"""Pruning rounds, before training: what a client computes for its saliency, and the masks made of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedhybrid.methods.local import update_of
from fedhybrid.methods.zeroth.masks import largest, masked, masked_names
from fedhybrid.methods.zeroth.noise import direction_seed, mask_name
from fedhybrid.methods.zeroth.passes import Passes, kind_of, with_controls
from fedhybrid.methods.zeroth.saliency import rebuilt_saliency, redraw, shift_name
from fedhybrid.methods.zeroth.server import SCALARS, SEED, masks_of
from fedhybrid.models.perturbed import draw_names
from fedhybrid.protocols import ClientRuntime, ServerState
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = ["PHASE", "client_seed", "phase_number", "pruned", "saliency_of", "sums_bytes", "weights_seed"]

PHASE = "prune-"  # and a number from 1: the kinds of tasks


def phase_number(kind: str) -> int:
    """Which pruning round a task belongs to, from 1."""
    return int(kind.removeprefix(PHASE))


def weights_seed(seed: int, phase: int) -> int:
    """Of the weights that every client draws in a pruning round."""
    return derive_seed(seed, purpose="pruning weights", round_index=phase)


def client_seed(seed: int, phase: int, client: int) -> int:
    """Of a client's directions in a pruning round; other clients have others, so that more are looked at in all."""
    return derive_seed(seed, purpose="pruning directions", round_index=phase, client=client)


def saliency_of(
    task: ClientTask, client: ClientRuntime, *, draws_weights: int | None, seed: int, repeats: int, sigma: float
) -> Update:
    """A pruning task: `repeats` directions or gradients.

    Gradients add up in one copy of the weights under masks, which the step's own peak does not have and whoever gives
    out tasks adds to it (`sums_bytes`).

    Args:
        task: Whose submodel says what is computed: "ntk" scalars, "ntk-bp" and "snip" gradients.
        client: "snip" reads its data; of the others' only the shape of a batch is read, inputs are N(0, 1).
        draws_weights: Seed of new weights; None: those of the task.
        seed: Of the directions.
        repeats: How many.
        sigma: Deviation of the mask's noise.
    """
    kind, (x, y) = kind_of(task.submodel), client.batch(torch.arange(task.work.batch_size) % client.num_samples)
    client.load(with_controls(task.weights, client))
    weights = masked_names(client.tensors)
    if draws_weights is not None:
        redraw(client.tensors, weights, draws_weights)
    work = LocalWork(epochs=1, batch_size=task.work.batch_size, lr=task.work.lr, steps=repeats)
    batches = client.batches(work, task.seed) if kind == "snip" else None
    passes, scalars, losses = Passes(client, task.submodel), [], []
    total = {shift_name(n): torch.zeros_like(client.tensors[n]) for n in weights} if kind != "ntk" else {}
    for number in range(repeats):
        own = derive_seed(task.seed, purpose="inputs", round_index=number)
        x = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(own))
        direction = direction_seed(seed, direction=number)
        if kind == "ntk":
            ahead, back = passes.both(x, y, seed=direction, scale=sigma, lanes=1)
            scalars.append((ahead.mean() - back.mean()) / 2)
            losses.append((ahead + back) / 2)
            continue
        if batches is not None:
            x, y = next(batches)
        losses.append(passes.add_gradients(total, x, y, seed=direction, share=1.0 / repeats))
    sent = {SCALARS: torch.stack(scalars).to(torch.float32)[None]} if scalars else total
    return update_of(task, client, sent, losses, steps=passes.count)


def sums_bytes(weights: Tensors) -> int:
    """What a client holds beside its step where it sends gradients of masks: their sum."""
    return sum(weights[name].nbytes for name in masked_names(weights))


def pruned(server: ServerState, updates: Sequence[Update], *, density: float, sigma: float) -> ServerState:
    """The server after a pruning round: signed saliencies are averaged, the largest sizes stay.

    Args:
        server: Before it.
        updates: Scalars, or gradients of masks.
        density: Share of all entries that stays now.
        sigma: Deviation of the mask's noise.
    """
    weights = server.weights
    names = [name for name in draw_names(weights) if mask_name(name) in weights]
    total = {name: torch.zeros(weights[name].shape, dtype=torch.float64) for name in names}
    for update in updates:
        if SCALARS in update.weights:
            seed = client_seed(int(server.extra[SEED]), phase_number(update.kind), update.client)
            seeds = [direction_seed(seed, direction=number) for number in range(update.weights[SCALARS].numel())]
            found = rebuilt_saliency(update.weights[SCALARS].flatten(), seeds, names, weights, sigma=sigma)
        else:
            found = {name: update.weights[shift_name(name)] for name in names}
        for name, saliency in found.items():
            total[name] += saliency
    masks = largest({name: tensor.abs() for name, tensor in total.items()}, masks_of(weights), density)
    kept: Tensors = {mask_name(name): mask for name, mask in masks.items()}
    return ServerState(weights=masked(weights | kept), extra=server.extra)
