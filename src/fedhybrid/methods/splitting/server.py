"""The server's half of one task: it trains the parts behind the cut on the activations that the device sends."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from fedhybrid.devices import DeviceProfile
from fedhybrid.errors import ConfigError
from fedhybrid.executor.bound import BoundModel, Layouts
from fedhybrid.executor.state import OptimizerState
from fedhybrid.methods.splitting.layers import known_layers, server_s
from fedhybrid.models.ordered import parts_of, span_of
from fedhybrid.protocols import Submodel
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import Tensors, detached_copy, load_into, tensors_of

__all__ = ["ServerHalf", "exchange_bytes"]

_QUESTION = ("activations", "labels")


def exchange_bytes(activation_bytes: int, labels: Tensor) -> tuple[int, int]:
    """Bytes up and down of one step's talk: activations and labels; their gradient and the losses, in float32.

    >>> exchange_bytes(1000, torch.zeros(8, dtype=torch.int64))
    (1064, 1032)
    """
    return activation_bytes + labels.nbytes, activation_bytes + 4 * labels.numel()


@final
class ServerHalf:
    """Implements `protocols.Attendant`: one replica for one client, with an optimizer of its own."""

    def __init__(self, task: ClientTask, whole: Submodel, *, cut: int, device: DeviceProfile) -> None:
        """A copy of the model's parts behind the cut, with the task's weights.

        Args:
            task: Has the weights of the whole model.
            whole: The run's own step.
            cut: Parts on the device; fewer than the model has.
            device: The server's profile.
        """
        self._half = span_of(whole.module, cut, len(parts_of(whole.module))).train()
        self._tensors = tensors_of(self._half)
        load_into(self._tensors, {name: task.weights[name] for name in self._tensors})
        trained = tuple(name for name, p in self._half.named_parameters() if p.requires_grad)
        bound = BoundModel(self._half, Layouts.of_model(self._half))
        self._leaves = {name: bound.leaves[name] for name in trained}
        self._state = OptimizerState(whole.optimizer, bound, trained)
        self._state.set_lr(task.work.lr)
        self._model, self._cut = whole.module, cut
        self._loss_fn, self._device = whole.loss_fn, device
        self._generator = torch.Generator().manual_seed(task.seed).get_state()
        self._step_s: float | None = None
        self._answers = 0
        self._most_samples, self._samples = _most_samples(task.work), 0

    def answer(self, question: Tensors) -> Tensors:
        """One training step of the half.

        Args:
            question: "activations", the output of the device's last part, and "labels".

        Returns:
            "gradient" of the batch's mean loss with respect to the activations, and "losses", one for each label.

        Raises:
            ConfigError: The question is not of this form, or the task's samples have all been asked about.
        """
        if sorted(question) != sorted(_QUESTION):
            raise ConfigError(f"a question must hold {' and '.join(_QUESTION)}, got {', '.join(sorted(question))}")
        # By samples: a step that a plan divides asks about a part of its batch at a time.
        self._samples += max((1, *question["labels"].shape[:1]))
        if self._most_samples is not None and self._samples > self._most_samples:
            raise ConfigError(f"a task of {self._most_samples:,} samples may ask about no more, got {self._samples:,}")
        activations = question["activations"].detach().clone().requires_grad_()
        if self._step_s is None:
            layers = known_layers(self._model, activations, first=self._cut)
            self._step_s = server_s(layers, self._device)
        before = torch.get_rng_state()
        torch.set_rng_state(self._generator)
        try:
            answer = self._step(activations, question["labels"])
            self._generator = torch.get_rng_state()
        finally:
            torch.set_rng_state(before)
        self._answers += 1
        return answer

    def _step(self, activations: Tensor, labels: Tensor) -> Tensors:
        with torch.enable_grad():
            # A copy, because the first part may write over its input (as `ReLU(inplace=True)` does).
            loss, losses = self._loss_fn(self._half(activations.clone()), labels)
            wanted = [activations, *self._leaves.values()]
            gradient, *own = torch.autograd.grad(loss, wanted, allow_unused=True)
        with torch.no_grad():
            for name, grad in zip(self._leaves, own, strict=True):
                if grad is not None:
                    self._state.apply(name, grad, False)
        return {"gradient": gradient, "losses": losses.detach()}

    def result(self) -> Tensors:
        """The half as it is now, by the model's names."""
        return detached_copy(self._tensors)

    @property
    def compute_s(self) -> float:
        """Virtual seconds of the steps so far, by the profile's rates."""
        return self._answers * (self._step_s or 0.0)


def _most_samples(work: LocalWork) -> int | None:
    """That the steps of a task can have together; None where that depends on what the client holds."""
    steps = work.steps
    if steps is None and work.samples is not None:
        steps = math.ceil(work.samples / work.batch_size)
    return None if steps is None else steps * work.batch_size
