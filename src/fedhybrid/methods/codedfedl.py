"""CodedFedL: coded rows at the server make up for the gradients that come too late, with fixed loads and no noise.

Source: S. Prakash, S. Dhakal, M. Akdeniz, A. S. Avestimehr, N. Himayat, "Coded Computing for Federated Learning at the
Edge", 2020, https://arxiv.org/abs/2007.03273; longer in IEEE JSAC 2021, https://arxiv.org/abs/2011.06223
Follows: each client codes its samples once, G_i W_i X_i, where W_i scales the samples that it will train on by the
square root of the probability that they come too late, and leaves those that it never trains on as they are; each round
it sends the gradient over its load; the server adds the gradient of the coded rows and what has come in time, so that
the sum is the whole gradient on average; each load is the one of which most comes back by the deadline.
Differs: the deadline is the recipe's (the paper looks for the shortest that brings enough), loads are whole batches,
the server's own step takes no time, and coded rows are all looked at. Any model whose last layer is linear can give the
features. Projections follow from the task's seed, as in `methods/scfl.py`. It is SCFL's baseline: no noise, so there is
no bound on what rows give away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from fedhybrid.methods.coded import (
    ARRIVAL,
    ENCODE,
    HEAD,
    NAMES,
    STEPS,
    AbstractCoded,
    CodedSet,
    arrival,
    best_load,
    coded_gradient,
    coding_tasks,
    encoded,
    head_names,
    head_tasks,
    is_whole,
    joined,
    split,
    trained_names,
)
from fedhybrid.methods.local import update_of
from fedhybrid.protocols import ClientRuntime, RoundPlan, ServerState
from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed

__all__ = ["CodedFedL"]

_CLASSES, _LOAD_SEED = "classes", "load_seed"  # options of tasks


@final
@dataclass(frozen=True, kw_only=True)
class CodedFedL(AbstractCoded):
    """One gradient step of the last layer a round, from fixed loads and coded rows; runs the unplanned step.

    Everybody must be in every cohort: what does not come is made up for by the probabilities of the first round.

    Attributes:
        coded_rows: Rows that every client sends.
        ridge: Weight of half the squared length of W in the objective.
        lift: Random Fourier features on top of the frozen layers, as many; 0: the last layer reads their output itself.
        lift_gamma: Of their kernel, times the number of features below.
    """

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """Coding, with the load for all rounds; then each round that load."""
        if plan.phase == ENCODE:
            return self._coding(server, plan)
        held = CodedSet.of_extra(server.extra)
        known = {} if held is None else dict(zip(held.clients.tolist(), held.steps.tolist(), strict=True))
        tasks = []
        for task in head_tasks(server, plan):
            steps = known.get(task.client, -(-plan.costs.num_samples(task.client) // task.work.batch_size))
            options = {**task.options, _LOAD_SEED: _load_seed(plan, task.client)}
            tasks.append(replace(task, work=replace(task.work, steps=steps, samples=None), options=options))
        return tasks

    def _coding(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        names = head_names(plan.costs.whole.module)
        later = {
            task.client: replace(task, submodel=HEAD, sent=names, sent_bytes=None)  # who has coded has all else
            for task in head_tasks(server, replace(plan, phase="train"))
        }
        loads = {
            client: best_load(
                max(plan.costs.num_samples(client), 1),
                plan.work.batch_size,
                partial(_arrival, plan, task),
            )
            for client, task in later.items()
        }
        classes = server.weights[names[0]].shape[0]
        return coding_tasks(
            server,
            plan,
            rows=self.coded_rows,
            options=lambda client: {
                STEPS: loads[client].steps,
                ARRIVAL: loads[client].arrival,
                _CLASSES: classes,
                _LOAD_SEED: _load_seed(plan, client),
            },
        )

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Codes the client's samples, or sends the gradient over its load, as the change that it would make."""
        names, steps = tuple(task.options[NAMES]), task.options.get(STEPS, task.work.steps)
        loaded = _load(client, steps * task.work.batch_size, task.options[_LOAD_SEED])
        if task.kind == ENCODE:
            labels = client.labels + task.options[_CLASSES]
            labels[loaded] = client.labels[loaded]
            scale = math.sqrt(1.0 - task.options[ARRIVAL])
            return encoded(task, client, names, noise=0.0, steps=steps, labels=labels, scale=scale)
        return _gradient(task, client, names, loaded)

    def stepped(self, server: ServerState, held: CodedSet | None, updates: Sequence[Update]) -> ServerState:
        """A step by the gradient of the rows and by those that came."""
        if held is None:
            return server
        names = trained_names(server, held, updates)
        weight = joined(server.weights, names).double()
        gradient = coded_gradient(held.x.double(), held.y.double(), weight) / held.total_samples + self.ridge * weight
        joint = weight - float(held.lr) * gradient
        for update in updates:
            if is_whole(update, names):
                joint = joint + joined(update.weights, names).double() / held.total_samples
        made_weights = split(joint.to(server.weights[names[0]].dtype), names)
        return replace(server, weights={**server.weights, **made_weights})


def _arrival(plan: RoundPlan, task: ClientTask, steps: int) -> float:
    """Probability that a load of so many steps is back in time."""
    return arrival(plan, task, steps=steps)


def _load_seed(plan: RoundPlan, client: int) -> int:
    """Decides which samples a client trains on, in every round."""
    return derive_seed(plan.run_seed, purpose="coded load", client=client)


def _load(client: ClientRuntime, count: int, seed: int) -> Tensor:
    """Positions of the client's load, ascending."""
    order = torch.randperm(client.num_samples, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


def _gradient(task: ClientTask, client: ClientRuntime, names: Sequence[str], loaded: Tensor) -> Update:
    """The sum of the changes by which each of these samples alone would move the last layer from the task's weights."""
    client.load(task.weights)
    batch_size, live = task.work.batch_size, client.tensors
    moved = {name: torch.zeros_like(task.weights[name], dtype=torch.float64) for name in names}
    kept = []
    for positions in torch.split(loaded, batch_size):
        x, _ = client.batch(torch.cat([positions, positions.new_zeros(batch_size - len(positions))]))
        own = client.labels[positions]
        with torch.no_grad():
            for name in names:
                live[name].copy_(task.weights[name])
        _, losses = client.step(x, torch.cat([own, own.new_full((batch_size - len(own),), -1)]))
        kept.append(losses[: len(positions)].detach().double())
        for name in names:
            moved[name] += batch_size * (live[name].double() - task.weights[name].double())
    sent = {name: tensor.to(task.weights[name].dtype) for name, tensor in moved.items()}
    return update_of(task, client, sent, kept)
