"""HeteroFL: a device trains the first share of each layer's channels, as large a share as its memory holds.

Source: E. Diao, J. Ding, V. Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for
Heterogeneous Clients", ICLR 2021, https://arxiv.org/abs/2010.01264
Follows: Algorithm 1. Narrow models are nested: the first ceil(share * channels) channels of each inner layer, shares 1,
1/2, 1/4, 1/8, 1/16; each element of the global model is the mean over those who hold it, and stays where nobody does.
Scaler: outputs of inner layers are divided by the share while training. Masked cross entropy: scores of classes that a
client has no sample of are zero, and their rows of the last layer are not its own to send. Static batch norm: batches
are normalised by their own statistics, nothing is tracked while training; before a test, clients are asked for the
global model's statistics, the mean over their batches.
Differs: a client's share follows from its memory (the widest that fits as PyTorch runs it; plans, where a recipe
switches them on, make wider ones fit), and the mean weighs by samples, as in FedAvg here. Statistics come from the
clients of the round that can hold a forward pass of the whole model, not from all; that pass and its bytes count.
Networks are narrowed as they are: norms after convolutions, depthwise convolutions (in equal shares), group norm with
at most as many groups, each head of attention and each gate of an LSTM by its own first share (`models/shares.py`).
Everybody holds the global model's inputs and classes: a device that cannot hold the narrowest model is left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import AbstractFederated, averaged_by_samples, tasks_for_cohort
from fedhybrid.methods.local import train_locally
from fedhybrid.methods.widths import MaskedClient, batch_statistics
from fedhybrid.models.narrowed import cut, groups_of, narrowed, require_narrow, widened, with_groups, without_groups
from fedhybrid.models.shares import BATCH_NORMS, kept_shares, last_layer
from fedhybrid.protocols import ClientRuntime, Optimizer, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors, buffers_of

__all__ = ["HeteroFL"]

_STATISTICS = "statistics"  # the submodel that does a forward pass of the whole model


@final
@dataclass(frozen=True, kw_only=True)
class HeteroFL(AbstractFederated):
    """Each client trains the widest of some nested narrower models that fits its memory.

    Attributes:
        rates: Shares of channels, widest first; the first is 1.
        scaler: Whether outputs of inner layers are divided by the share while training.
        mask: Whether the scores of classes that a client does not have are masked.
    """

    rates: str = "1 0.5 0.25 0.125 0.0625"
    scaler: bool = True
    mask: bool = True

    def __post_init__(self) -> None:
        try:
            shares = [float(word) for word in self.rates.split()]
        except ValueError:
            shares = []
        falling = all(math.isfinite(b) and a > b > 0 for a, b in pairwise(shares))
        if not shares or shares[0] != 1 or not falling:
            raise ConfigError(f'rates must be shares that fall from 1, such as "1 0.5 0.25", got {self.rates!r}')

    @property
    def plans(self) -> bool:
        """No plans unless a recipe switches them on: who cannot hold a width runs a narrower one as it is."""
        return False

    @property
    def asynchronous(self) -> bool:
        """False: as FedAvg's."""
        return False

    @property
    def closes(self) -> bool:
        """Statistics of batch norm are asked for before a test."""
        return True

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The recipe's model; where layers have groups, with a buffer that says which, as the server must know.

        Raises:
            ConfigError: A narrower one cannot be made of it, or does not run.
        """
        last_layer(model)
        for share in self._shares:
            require_narrow(model, sample, share)
        return with_groups(model)

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """All widths, the widest first."""
        return tuple(f"w{share}" for share in self._shares)

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """A narrower model, or the whole one in a forward pass that takes batch norm's statistics."""
        if not name:
            return whole
        if name == _STATISTICS:
            module = _forward_only(without_groups(whole.module))
        else:
            bare, share = without_groups(whole.module), float(name[1:])
            if share == 1 and bare is whole.module and not _statistics(bare):
                return whole
            module = _static(narrowed(bare, share, scaler=self.scaler))
        return replace(whole, module=module)

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer itself."""
        return base

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """To each client its part of the global model; before a test, to those who can hold it, all of it."""
        whole = without_groups(plan.costs.whole.module)
        tracked = _statistics(whole)
        if plan.phase == "close":
            return self._queries(server, plan) if tracked else []
        parts: dict[str, Tensors] = {}
        for name in {plan.submodels.get(client, "") for client in plan.cohort} - {""}:
            shares = kept_shares(whole, float(name[1:]))
            parts[name] = cut(server.weights, {n: kept for n, kept in shares.items() if n not in tracked})
        options = {"head": last_layer(whole)}
        return [
            replace(task, weights=parts.get(task.submodel, server.weights), options=options)
            for task in tasks_for_cohort(server, plan)
        ]

    def _queries(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        work = replace(plan.work, epochs=1, steps=None, samples=None)
        tasks = []
        for task in tasks_for_cohort(server, plan):
            quote = plan.costs.quote(task.client, _STATISTICS)
            if quote.fits:
                tasks.append(replace(task, work=work, submodel=_STATISTICS, plan=quote.plan))
        return tasks

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Local epochs of a part of the model, or the statistics of all of it."""
        if task.kind == "close":
            return batch_statistics(task, client)
        if not self.mask or "head" not in task.options:
            return train_locally(task, client)
        masked = MaskedClient(client, head=str(task.options["head"]))
        update = train_locally(task, masked)
        return replace(update, masks=masked.masks())

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """Each element's mean over those who hold it."""
        if updates[0].kind == "close":
            return averaged_by_samples(server, updates)
        groups = groups_of(server.weights)
        return averaged_by_samples(server, [_widened(update, server.weights, groups) for update in updates])

    @property
    def _shares(self) -> list[float]:
        return [float(word) for word in self.rates.split()]


def _widened(update: Update, whole: Tensors, groups: dict[str, tuple[int, ...]]) -> Update:
    """The update at its places in the whole model."""
    weights, there = widened(update.weights, whole, groups)
    sent, _ = widened(update.masks, whole, groups)  # False outside
    return replace(update, weights=weights, masks={**there, **sent})


def _statistics(model: nn.Module) -> frozenset[str]:
    """Names of the buffers in which norms track statistics."""
    norms = ((path, module) for path, module in model.named_modules() if isinstance(module, BATCH_NORMS))
    tracking = {path for path, module in norms if module.track_running_stats}
    return frozenset(name for name in buffers_of(model) if name.rpartition(".")[0] in tracking)


def _static(model: nn.Module) -> nn.Module:
    """The same model, whose norms track nothing."""
    for name in _statistics(model):
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, None)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.track_running_stats = False
    return model


def _forward_only(model: nn.Module) -> nn.Module:
    """A copy in which nothing is trained, and norms hold the statistics of the last batch alone."""
    own = copy.deepcopy(model)
    for parameter in own.parameters():
        parameter.requires_grad_(False)
    for module in own.modules():
        if isinstance(module, BATCH_NORMS):
            module.momentum = 1.0
    return own
