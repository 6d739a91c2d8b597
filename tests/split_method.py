"""A small method that stresses the protocol: split learning, whose clients ask the server in the middle of a task.

Source of the idea: C. Thapa et al., "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022,
https://arxiv.org/abs/2004.12088 (its first version: each client has a server half of its own, and both are averaged).
The device holds the first layer, the server the second; for each batch activations and labels go up and the gradient
of the activations comes down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.protocols import ClientRuntime, Optimizer, Submodel
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors

DEVICE, SERVER = ("first.weight", "first.bias"), ("second.weight", "second.bias")


@final
class TwoLayers(nn.Module):
    """Device half and server half."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(torch.Size(input_shape).numel(), 32)
        self.second = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)).relu())  # type: ignore[no-any-return]


@final
class ServerHalf:
    """The server's side of one task."""

    def __init__(self, task: ClientTask) -> None:
        self.lr = task.work.lr
        self.weight, self.bias = (task.weights[name].clone() for name in SERVER)

    def answer(self, question: Tensors) -> Tensors:
        activations = question["activations"].clone().requires_grad_()
        weight, bias = self.weight.requires_grad_(), self.bias.requires_grad_()
        with torch.enable_grad():
            losses = F.cross_entropy(F.linear(activations, weight, bias), question["labels"], reduction="none")
            gradient, *own = torch.autograd.grad(losses.mean(), [activations, weight, bias])
        self.weight, self.bias = ((p - self.lr * g).detach() for p, g in zip((weight, bias), own, strict=True))
        return {"gradient": gradient, "losses": losses.detach()}

    compute_s = 0.0

    def result(self) -> Tensors:
        return {SERVER[0]: self.weight.detach(), SERVER[1]: self.bias.detach()}


@final
@dataclass(frozen=True, kw_only=True)
class SplitTraining(AbstractAveraging):
    """Plain SGD over both halves."""

    @property
    def plans(self) -> bool:
        return False

    def optimizer(self, base: Optimizer) -> Optimizer:
        return base

    def attend(self, task: ClientTask, whole: Submodel) -> ServerHalf:
        return ServerHalf(task)

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        client.load(task.weights)
        weight, bias = (task.weights[name].clone() for name in DEVICE)
        kept: list[Tensor] = []
        for x, y in client.batches(task.work, task.seed):
            weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
            with torch.enable_grad():
                activations = F.linear(x.flatten(1), weight, bias).relu()
            answer = client.exchange({"activations": activations.detach(), "labels": y})
            own = torch.autograd.grad(activations, [weight, bias], answer["gradient"])
            weight, bias = ((p - task.work.lr * g).detach() for p, g in zip((weight, bias), own, strict=True))
            kept.append(answer["losses"])
        losses = torch.cat(kept).double()
        return Update(
            client=task.client,
            round_index=task.round_index,
            weights={DEVICE[0]: weight.detach(), DEVICE[1]: bias.detach()},
            num_samples=client.num_samples,
            samples_seen=len(losses),
            steps=len(kept),
            loss_mean=losses.mean().item(),
            squared_loss_sum=losses.square().sum().item(),
            measured_peak_bytes=client.measured_peak_bytes,
        )
