"""What people use today to train in less memory, as steps that a benchmark can run beside ours.

`PEERS` is the table: name -> maker. A maker gets a model of its own and returns the step that runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from peers.checkpoints import checkpointed
from peers.compiled import compiled_step
from peers.hooks import quantised_step

__all__ = ["LR", "MOMENTUM", "PEERS", "Peer", "plain_step"]

LR, MOMENTUM = 0.05, 0.9


@dataclass(frozen=True)
class Peer:
    """A step that can be run again and again; gradients are None before and after it."""

    run: Callable[[], Tensor]
    note: str


def plain_step(
    model: nn.Module, batch: tuple[Tensor, Tensor], forward: Callable[[Tensor], Tensor] | None = None
) -> Callable[[], Tensor]:
    """Forward, loss, backward, torch.optim.SGD with momentum (its default implementation), gradients to None."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    x, y = batch
    call = model if forward is None else forward

    def step() -> Tensor:
        loss = F.cross_entropy(call(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _eager(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Peer:
    return Peer(plain_step(model, batch), "PyTorch eager, torch.optim.SGD")


def _checkpoint(model: nn.Module, batch: tuple[Tensor, Tensor], *, group: int | None) -> Peer:
    wrapped, blocks, group = checkpointed(model, group)
    return Peer(plain_step(wrapped, batch), f"torch.utils.checkpoint, {blocks} blocks, {group} in each segment")


def _compiled(model: nn.Module, batch: tuple[Tensor, Tensor], *, ratio: float) -> Peer:
    step = compiled_step(partial(plain_step, model, batch), model, ratio)
    return Peer(step, f"torch.compile, aot_eager partitioned with activation_memory_budget={ratio:g}")


def _hooks(model: nn.Module, batch: tuple[Tensor, Tensor], *, bits: int) -> Peer:
    step = quantised_step(plain_step(model, batch), model, bits)
    return Peer(step, f"saved_tensors_hooks, {bits} bit per element in groups of 256, parameters left alone")


PEERS: dict[str, Callable[[nn.Module, tuple[Tensor, Tensor]], Peer]] = {
    "eager": _eager,
    "checkpoint per block": partial(_checkpoint, group=1),
    "checkpoint per 2 blocks": partial(_checkpoint, group=2),
    "checkpoint square root": partial(_checkpoint, group=None),
    "torch.compile budget 0.5": partial(_compiled, ratio=0.5),
    "torch.compile budget 0.2": partial(_compiled, ratio=0.2),
    "torch.compile budget 0": partial(_compiled, ratio=0.0),
    "hooks 8 bit": partial(_hooks, bits=8),
    "hooks 4 bit": partial(_hooks, bits=4),
}
