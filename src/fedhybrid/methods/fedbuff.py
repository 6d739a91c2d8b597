"""FedBuff: the server collects a buffer of differences from clients of any age, and moves by their mean.

Source: J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, "Federated Learning with Buffered
Asynchronous Aggregation", AISTATS 2022, https://arxiv.org/abs/2106.06639
Follows: Algorithm 1: a client sends the difference to the model that it received; after K of them (`schedule.buffer`)
the server adds `server_lr` times their sum over K, each scaled by 1 / sqrt(1 + staleness) (its section 5).
Differs: no secure aggregation and no noise; of an element that a client does not send, the difference counts as 0.
Buffers of the model (statistics of batch norm), which the paper does not have, are sent as they are, and the server
moves towards their mean by `server_lr` times the mean scale, at most all the way: differences of a variance, added up,
may leave less than nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import AbstractAsynchronous
from fedhybrid.methods.local import train_locally
from fedhybrid.protocols import ClientRuntime, Optimizer, ServerState
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors
from fedhybrid.updates import average_present

__all__ = ["FedBuff"]


@final
@dataclass(frozen=True, kw_only=True)
class FedBuff(AbstractAsynchronous):
    """Moves the global model by the mean difference of a buffer; runs the unplanned step unless plans are switched on.

    Attributes:
        server_lr: How far the server moves along that mean, above 0.
        scaled: Whether stale differences count less.
    """

    server_lr: float = 1.0
    scaled: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.server_lr) and self.server_lr > 0):
            raise ConfigError(f"server_lr must be a positive number, got {self.server_lr}")

    @property
    def differences(self) -> bool:
        """Clients send differences: the server does not keep the models that they began with."""
        return True

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local epochs of ordinary training, and what they have changed."""
        update = train_locally(task, client)
        changed = {
            name: after if name in client.buffers else after - task.weights[name]
            for name, after in update.weights.items()
        }
        return replace(update, weights=changed)

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """The global model plus the scaled mean difference."""
        ages = [server.version - update.round_index for update in updates]
        scales = [1.0 / math.sqrt(1.0 + age) if self.scaled else 1.0 for age in ages]
        step = self.server_lr * sum(scales) / len(scales)  # the paper divides by the number, not by the scales
        still = {
            name: tensor if name in server.buffers else torch.zeros_like(tensor)
            for name, tensor in server.weights.items()
        }
        mean = average_present(still, [_filled(update, still) for update in updates], scales, [{}] * len(updates))
        weights = {
            name: _mixed(tensor, mean[name], min(step, 1.0))
            if name in server.buffers
            else _moved(tensor, mean[name], step)
            for name, tensor in server.weights.items()
        }
        return ServerState(weights=weights, extra=server.extra)


def _filled(update: Update, still: Tensors) -> Tensors:
    """The update as if all were sent: nothing changes where nothing was."""
    whole = {**still, **update.weights}
    return whole | {name: torch.where(mask, whole[name], still[name]) for name, mask in update.masks.items()}


def _mixed(tensor: torch.Tensor, towards: torch.Tensor, share: float) -> torch.Tensor:
    """Between the two; 1 is all the way."""
    return average_present({"": tensor}, [{"": tensor}, {"": towards}], [1.0 - share, share], [{}, {}])[""]


def _moved(tensor: torch.Tensor, by: torch.Tensor, step: float) -> torch.Tensor:
    if tensor.is_floating_point():
        return tensor + step * by
    return tensor + (step * by.to(torch.float64)).round().to(tensor.dtype)
