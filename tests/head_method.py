"""A small method that stresses submodels: who cannot hold the whole model's step trains its head alone.

Each round has a stage before its training, in which clients tell their loss; the rest of the model travels to those who
train the head only once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import nn

from fedhybrid.methods.averaging import AbstractAveraging, averaged_by_samples, tasks_for_cohort
from fedhybrid.methods.local import train_locally
from fedhybrid.protocols import ClientRuntime, Optimizer, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.tree import Tensors

HEAD = ("head.weight", "head.bias")


@final
@dataclass(frozen=True, kw_only=True)
class HeadFirst(AbstractAveraging):
    """FedAvg of the whole model by the strong and of the head by all."""

    variants: int = 1

    @property
    def plans(self) -> bool:
        return True

    @property
    def stages(self) -> tuple[str, ...]:
        return ("probe", "train")

    def optimizer(self, base: Optimizer) -> Optimizer:
        return base

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        return ("", "head")

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        if not name:
            return whole
        module = copy.deepcopy(whole.module)
        for tensor, parameter in module.named_parameters():
            parameter.requires_grad_(tensor in HEAD)
        return replace(whole, module=module)

    def init(self, weights: Tensors) -> ServerState:
        return ServerState(
            weights={n: t.clone() for n, t in weights.items()}, extra={"known": torch.zeros(0, dtype=torch.int64)}
        )

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        known = set(server.extra["known"].tolist())
        tasks = []
        for task in tasks_for_cohort(server, plan):
            quote = plan.costs.quote(task.client, task.submodel)
            assert quote.fits
            assert quote.plan == task.plan
            if plan.phase == "probe":
                work = LocalWork(epochs=1, batch_size=plan.work.batch_size, lr=1e-6, steps=1)
                sent = HEAD if task.client in known and task.submodel else None
                tasks.append(replace(task, work=work, sent=sent))
                continue
            # Other names for the same thing: a run may have more submodels than are remembered.
            number = (plan.round_index + task.client) % self.variants
            name = f"{task.submodel}.{number}" if task.submodel and number else task.submodel
            planned = plan.costs.quote(task.client, name).plan
            tasks.append(replace(task, submodel=name, plan=planned, sent=()))  # the probe has brought everything
        return tasks

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        update = train_locally(task, client)
        if task.kind == "probe":
            return replace(update, weights={}, kind="probe", metrics={"loss": update.loss_mean})
        sent = HEAD if task.submodel else tuple(update.weights)
        return replace(update, weights={name: update.weights[name] for name in sent})

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        if updates[0].kind == "probe":
            assert all(update.metrics["loss"] > 0 for update in updates)
            known = sorted({*server.extra["known"].tolist(), *(update.client for update in updates)})
            return replace(server, extra={"known": torch.tensor(known)})
        return averaged_by_samples(server, updates)
