"""SCFL: noisy random projections of the clients' data stand in at the server for updates that come too late.

Source: Y. Sun, J. Shao, Y. Mao, S. Li, J. Zhang, "Stochastic Coded Federated Learning: Theoretical Analysis and
Incentive Mechanism Design", 2022, https://arxiv.org/abs/2211.04132 (first as "Stochastic Coded Federated Learning with
Convergence and Privacy Guarantees", ISIT 2022, https://arxiv.org/abs/2201.10092)
Follows: each client sends G_i X_i + V_i and G_i Y_i once, before training; the server adds them up, takes gradients on
mini-batches of the sum with a make-up term for the noise, and mixes them with what arrives before the deadline, so that
the sum has no bias; periodic averaging of several local steps; privacy by mutual information; a contract that pays for
exposure (`methods/coded/contract.py`).
Differs: the paper's formulas are not public; weights, rule for several steps, privacy bound and contract are
RECONSTRUCTED. With gradients g_i of clients' squared losses, g_s = Xc^T (Xc W - Yc) / c - S2 W and arrivals with
probability p_i, one step is W - (eta / l) (lambda * sum over arrived of g_i / p_i + (1 - lambda) g_s). Ours: any model
whose last layer is linear can give the features (frozen, at best pre-trained), p_i is what the delay model says of the
very task, a client's share is that of the cohort. "Without bias" needs that everybody can come: who is out of memory,
or whose task cannot end by the deadline, loses his share of the clients' part. A probability below 0.01 counts as
0.01, and one of 0 whose client comes all the same as 1. Probabilities see delays (`[fleet.delays]`) and the deadline,
no other failures. The server's own step takes no virtual time. Projection and noise follow from the task's seed, so
that runs can be replayed: a real device must draw them from a source that the server does not know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from fedhybrid.executor import SGD
from fedhybrid.methods.coded import (
    ARRIVAL,
    ENCODE,
    NAMES,
    SHARE,
    STEPS,
    AbstractCoded,
    CodedSet,
    Measured,
    ServerStep,
    arrival,
    arrivals_variance,
    at_least,
    chance,
    coding_tasks,
    encoded,
    head_tasks,
    is_whole,
    joined,
    mixed,
    row_variance,
    shares,
    split,
    trained_names,
)
from fedhybrid.methods.local import train_locally
from fedhybrid.protocols import ClientRuntime, RoundPlan, ServerState
from fedhybrid.records import ClientTask, Update

__all__ = ["Scfl"]

_SIGMA = "sigma"  # option of tasks


@final
@dataclass(frozen=True, kw_only=True)
class Scfl(AbstractCoded):
    """Trains the last layer by squared loss, helped by coded rows at the server; runs the unplanned step.

    Attributes:
        coded_rows: c, rows that every client sends; a fifth of all samples or less.
        sigma: Noise of a client's rows, in units of the root mean square of its features; 0 is no privacy.
        sigmas: Noise of several kinds of clients, such as "0.2 0.5 1.0": client i is of kind i modulo their number. In
            the place of `sigma`; the menu of a contract.
        mix: lambda, how much the clients' updates count against the server's own, above 0 and at most 1; with 1 nothing
            is coded. With 1 and without a deadline everybody is waited for: FedAvg of the last layer.
        measured: Whether lambda is the one of the least variance, as measured in earlier rounds; `mix` holds until
            somebody has come.
        inverse: Whether an update counts by 1 / p_i. Without it those who came are averaged, and who is late is
            dropped.
        make_up: Whether the server takes the noise's bias back. False is only to see what that does.
        batch_rows: Coded rows of one of the server's steps; 0: all.
        ridge: Weight of half the squared length of W in the objective.
        lift: Random Fourier features on top of the frozen layers, as many; 0: the last layer reads their output itself.
        lift_gamma: Of their kernel, times the number of features below.
    """

    sigma: float = 0.5
    sigmas: str = ""
    mix: float = 0.5
    measured: bool = False
    inverse: bool = True
    make_up: bool = True
    batch_rows: int = 0

    def _problems(self) -> list[str]:
        problems = [*super()._problems(), *at_least(("sigma", self.sigma, 0), ("batch_rows", self.batch_rows, 0))]
        if not 0 < self.mix <= 1:
            problems.append(f"mix must be above 0 and at most 1, got {self.mix}")
        if _numbers(self.sigmas) is None:
            problems.append(f"sigmas must be numbers of at least 0 with spaces between them, got {self.sigmas!r}")
        if self.measured and self.mix == 1:
            problems.append("measured needs coded rows, and with mix = 1 nothing is coded; change one of the two")
        if self.measured and not self.inverse:
            problems.append("measured is for sums without bias, and inverse is false; change one of the two")
        return problems

    @property
    def codes(self) -> bool:
        """Unless only the clients count."""
        return self.mix < 1

    def of_sgd(self, base: SGD) -> SGD:
        """With the ridge, as the server's own step has it."""
        return replace(base, weight_decay=self.ridge)

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """Coding to everybody, or W to the cohort; frozen layers travel once to each client."""
        if plan.phase == ENCODE:
            kinds = _numbers(self.sigmas) or (self.sigma,)
            sigma = {client: kinds[client % len(kinds)] for client in plan.cohort}
            return coding_tasks(server, plan, rows=self.coded_rows, options=lambda client: {_SIGMA: sigma[client]})
        share = shares(plan)
        return [
            replace(task, options={**task.options, SHARE: share[task.client], ARRIVAL: arrival(plan, task)})
            for task in head_tasks(server, plan)
        ]

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Codes the client's samples, or trains the last layer and says how far it has moved."""
        names = tuple(task.options[NAMES])
        if task.kind == ENCODE:
            return encoded(task, client, names, noise=task.options[_SIGMA], steps=task.options[STEPS])
        update = train_locally(task, client)
        moved = {name: update.weights[name] - task.weights[name] for name in names}
        return replace(update, weights=moved, metrics={name: task.options[name] for name in (SHARE, ARRIVAL)})

    def stepped(self, server: ServerState, held: CodedSet | None, updates: Sequence[Update]) -> ServerState:
        """The mixed step; updates that lack what they need count for nothing."""
        names = trained_names(server, held, updates)
        came = [update for update in updates if names and is_whole(update, names) and _is_weighted(update)]
        if not names or (held is None and not came):
            return server
        weight, changes = joined(server.weights, names), [joined(update.weights, names) for update in came]
        alone, mix, extra = None, self.mix, server.extra
        if held is not None:
            step = self._own_step(held)
            alone = step.change(weight, server.version)
            if self.measured:
                before = Measured.of_extra(extra)
                mix = self.mix if before is None else before.mix
                if came or before is not None:
                    far = held.lr_steps / held.total_samples  # what a difference of gradients moves W by
                    varies = far**2 * row_variance(held.x, held.y, weight, step.rows)
                    now = Measured(clients=arrivals_variance(came, changes), server=varies)
                    extra = {**extra, **now.after(before).to_extra()}
        joint = mixed(weight, changes, self._factors(came), alone, mix)
        return replace(server, weights={**server.weights, **split(joint, names)}, extra=extra)

    def _own_step(self, held: CodedSet) -> ServerStep:
        return ServerStep(
            x=held.x,
            y=held.y,
            noise=held.noise if self.make_up else 0.0,
            samples=held.total_samples,
            lr=float(held.lr),
            steps=held.usual_steps,
            ridge=self.ridge,
            batch=self.batch_rows,
            seed=int(held.seed),
        )

    def _factors(self, came: Sequence[Update]) -> list[float]:
        """What each client's change is multiplied by."""
        if self.inverse:
            return [update.metrics[SHARE] / chance(update) for update in came]
        total = sum(update.num_samples for update in came)
        return [update.num_samples / total for update in came]


def _is_weighted(update: Update) -> bool:
    return all(0 <= update.metrics.get(name, -1.0) <= 1 for name in (SHARE, ARRIVAL))


def _numbers(text: str) -> tuple[float, ...] | None:
    """Noise levels; None where the text is something else."""
    try:
        found = tuple(float(part) for part in text.split())
    except ValueError:
        return None
    return found if all(math.isfinite(value) and value >= 0 for value in found) else None
