"""A question in the middle of a training step: activations go out, their gradient comes back.

In split learning a device runs the first layers of a model and a server the others. `asked_loss` stands at the end of
the device's half as its loss function, so forward pass, question, backward pass and updates are one step, which is
captured, planned and compiled as any other. The question is an operator of our own, `fedhybrid::ask`. It is marked like
those that draw random numbers: whoever is asked may change at each question, so it is never left out, never run a
second time, and keeps its place.

Who answers is not part of the step: `answering` sets it around the steps of a task. Where nobody is set (while a step
is profiled, planned or measured) the operator answers itself, with tensors of the right form and no side effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fedhybrid.errors import FedHybridError
from fedhybrid.graph.ir import StepGraph

__all__ = ["ASK", "Asker", "answering", "asked_loss", "exchanged_bytes"]

Asker = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

ASK = "fedhybrid.ask.default"  # as graphs and programs name the operator

_asker: ContextVar[Asker | None] = ContextVar("asker", default=None)

_library = torch.library.Library("fedhybrid", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "ask(Tensor activations, Tensor labels) -> (Tensor gradient, Tensor losses)",
    tags=(torch.Tag.nondeterministic_seeded,),
)


@contextmanager
def answering(ask: Asker | None) -> Iterator[None]:
    """Inside, questions of this thread's steps go to `ask`; None: to nobody, whoever was set before.

    Args:
        ask: `(activations, labels) -> (gradient, losses)`: the gradient of the batch's mean loss with respect to the
            activations, in their shape, and the loss of each label. Neither may be written to afterwards by the step,
            and so they are copied.
    """
    before = _asker.set(ask)
    try:
        yield
    finally:
        _asker.reset(before)


def asked_loss(activations: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a model's first half, as the one who is asked says it; a loss function of `compile_step`.

    Returns:
        The mean loss, whose gradient with respect to the activations is the answer's, and the loss of each label.
    """
    loss, losses = _Asked.apply(activations, labels)  # type: ignore[no-untyped-call]
    return loss, losses


def exchanged_bytes(graph: StepGraph) -> tuple[int, int]:
    """Bytes of all questions and of all answers of one step; zeros where it asks nothing."""
    asked = [op for op in graph.ops if op.target == ASK]
    questions = sum(graph.values[v].nbytes for op in asked for v in op.inputs)
    answers = sum(graph.values[v].nbytes for op in asked for v in op.outputs if v is not None)
    return questions, answers


class _Asked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activations: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        gradient, losses = torch.ops.fedhybrid.ask(activations.detach(), labels)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None  # by 1, or by its share where a batch is trained on in parts


def _formed(activations: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where an answer is put."""
    return torch.empty_like(activations), activations.new_empty(labels.shape)


@torch.library.impl(_library, "ask", "CPU")
def _ask(activations: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    ask = _asker.get()
    gradient, losses = _formed(activations, labels)
    if ask is None:
        # As if the loss were half the sum of squares: unlike zeros, such a gradient shows what a plan does to it.
        return gradient.copy_(activations), losses.zero_()
    answer = ask(activations, labels)
    for name, given, place in zip(("gradient", "losses"), answer, (gradient, losses), strict=True):
        if given.shape != place.shape:
            raise FedHybridError(
                f"the answer's {name} must have the shape {list(place.shape)}, got {list(given.shape)}; both sides "
                "must have cut the model at the same place"
            )
        place.copy_(given)
    return gradient, losses


torch.library.register_fake("fedhybrid::ask", _formed, lib=_library)
