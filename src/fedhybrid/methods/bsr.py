"""BSR (block selective reprogramming): a few blocks of a pre-trained vision transformer train, on half of the tokens.

Source: S. Sarkar, S. Kundu, K. Zheng, P. A. Beerel, "Block Selective Reprogramming for On-device Training of Vision
Transformers", CVPR 2024 workshops, https://arxiv.org/abs/2405.10951
Follows: the method's section and the authors' public code: blocks 3, 7 and 11 (from 0), the last layer norm and the
head train, all else is frozen; blocks 3, 6 and 9 drop, between attention and perceptron, the half of the tokens that
the class token looks at least, and fuse them into one token (`models/token_drop.py`); blocks before the first trained
one keep nothing for the backward pass.
Differs: the paper is about one device; the federated form is RECONSTRUCTED, that is ours: each client trains the first
of several sets of blocks that its memory holds, the later its first block the less it needs; only what may train
travels, and the frozen rest once to each client; each tensor is averaged over those who trained it. Scores come from a
block that may itself train, as in the code (the abstract says frozen layers). Left out: the mixture-of-experts variant,
and the schedules of the experiments (warm-up, cosine, clipping).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import AbstractAveraging, averaged_by_samples, tasks_for_cohort
from fedhybrid.methods.local import train_locally
from fedhybrid.models.token_drop import TokenDropVit
from fedhybrid.protocols import ClientRuntime, Optimizer, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors

__all__ = ["Bsr"]

_HEAD = "head"  # the submodel that trains no block
_HOLDERS = "bsr/holders"  # numbers of the clients that have the frozen tensors, ascending
_NUMBERS = re.compile(r"(\d+(-\d+)*)?")


@final
@dataclass(frozen=True, kw_only=True)
class Bsr(AbstractAveraging):
    """Trains chosen blocks of a token-dropping ViT, as many as each client holds; no plans unless switched on.

    Attributes:
        blocks: Numbers of the blocks that train, ascending, such as "3-7-11"; a client that cannot hold them leaves out
            the first, and so on; with "" everybody trains the head alone.
        drop_at: Numbers of the blocks that drop tokens; with "" none does.
        keep_ratio: Of the tokens beside the class token that a drop keeps, above 0 and at most 1.
        fuse: Whether dropped tokens go on as one, added up by their scores.
    """

    blocks: str = "3-7-11"
    drop_at: str = "3-6-9"
    keep_ratio: float = 0.5
    fuse: bool = True

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be numbers of blocks, ascending, joined by '-', such as \"3-7-11\"; found {given!r}"
            for name, given in (("blocks", self.blocks), ("drop_at", self.drop_at))
            if not _NUMBERS.fullmatch(given) or _numbers(given) != tuple(sorted(set(_numbers(given))))
        ]
        if not 0 < self.keep_ratio <= 1:
            problems.append(f"keep_ratio must be above 0 and at most 1, got {self.keep_ratio}")
        if problems:
            raise ConfigError(problems)

    @property
    def plans(self) -> bool:
        """No plans unless a recipe switches them on: clients choose among sets of blocks."""
        return False

    @property
    def _choices(self) -> tuple[str, ...]:
        numbers = [str(number) for number in _numbers(self.blocks)]
        return (*("b" + "-".join(numbers[first:]) for first in range(len(numbers))), _HEAD)

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The ViT with drops, in training and in tests.

        Raises:
            ConfigError: The model is no ViT with a class token, or lacks some of the blocks.
        """
        adapted = TokenDropVit(model, drop_at=_numbers(self.drop_at), keep_ratio=self.keep_ratio, fuse=self.fuse)
        outside = [number for number in _numbers(self.blocks) if number >= len(adapted.blocks)]
        if outside:
            raise ConfigError(
                f"method_options.blocks must be 0 to {len(adapted.blocks) - 1} in this model, found "
                f"{', '.join(map(str, outside))}; give others, or a larger model_options.depth"
            )
        return adapted

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """All blocks, without the first, and so on to the head alone."""
        return self._choices

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The whole model, all frozen but the blocks in the name, the last norm and the head; "" freezes nothing."""
        if not name:
            return whole
        module = copy.deepcopy(whole.module)
        for tensor_name, parameter in module.named_parameters():
            parameter.requires_grad_(_trains(name, tensor_name))
        return replace(whole, module=module)

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """The global model; who has the frozen tensors gets the others alone."""
        holders = set(server.extra[_HOLDERS].tolist()) if _HOLDERS in server.extra else set()
        moving = tuple(name for name in server.weights if _trains(self._choices[0], name))
        return [
            replace(task, sent=moving) if task.client in holders else task for task in tasks_for_cohort(server, plan)
        ]

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local training; what was frozen is not sent."""
        update = train_locally(task, client)
        return replace(update, weights=_trained(update.weights, task.submodel))

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """Mean of each tensor over those who trained it; they all have the frozen ones from now on.

        What is frozen everywhere is left out of updates: an altered one would not reach who has the frozen tensors.
        """
        trained = [replace(update, weights=_trained(update.weights, self._choices[0])) for update in updates]
        mean = averaged_by_samples(server, trained)
        before = server.extra.get(_HOLDERS, torch.zeros(0, dtype=torch.int64))
        holders = torch.tensor(sorted({*before.tolist(), *(update.client for update in updates)}))
        return replace(mean, extra={**server.extra, _HOLDERS: holders})


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("-")) if text else ()


def _trained(weights: Tensors, submodel: str) -> Tensors:
    """Those that train in the submodel of that name."""
    return {name: tensor for name, tensor in weights.items() if _trains(submodel, name)}


def _trains(submodel: str, tensor: str) -> bool:
    """Whether the tensor of that name trains in the submodel of that name."""
    if not submodel:
        return True
    blocks = () if submodel == _HEAD else _numbers(submodel.removeprefix("b"))
    return tensor.startswith(("norm.", "head.", *(f"blocks.{number}." for number in blocks)))
