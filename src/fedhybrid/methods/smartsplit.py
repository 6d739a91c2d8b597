"""SmartSplit: a device trains as many layers as its memory holds, an edge server the others, batch by batch together.

Source: "Breaking the Memory Wall for Heterogeneous Federated Learning via Model Splitting" (SmartSplit), IEEE TPDS
35(12), 2024, https://arxiv.org/abs/2410.11577
Follows: what its abstract and public outline say: a central manager chooses devices by memory, capacity and data (the
policy "smartsplit") and where the model is cut; a manager on the edge server trains the other half, one replica for
each device, and refines the cuts by how important layers are as training goes on; a manager on the device decides by
cost what is recomputed while its memory budget changes.
Differs: the paper's formulas and constants are not public. All of them here are RECONSTRUCTED, none is the paper's;
they stand in `methods/splitting/` and `selection/smartsplit.py`. What a cut needs is no formula but the peak of the
device's half as captured and planned; the manager on the device is our planner, tensor by tensor, and plans are
switched before a step when memory moves. Importance is averaged by tensor (`methods/splitting/importance.py`). Where
nothing of a client's cut fits any more, it gets an earlier one at its next round, not within a task. The whole model
may stay on a device that can hold it, if that is faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import final

import torch
from torch import Tensor, nn

from fedhybrid.devices import DeviceProfile, load_profile
from fedhybrid.errors import ConfigError
from fedhybrid.graph import answering
from fedhybrid.methods.averaging import AbstractAveraging, averaged_by_samples
from fedhybrid.methods.local import train_locally
from fedhybrid.methods.splitting import (
    Cut,
    ServerHalf,
    device_half,
    earlier_cut,
    exchange_bytes,
    fastest_cut,
    first_watch,
    importance_of,
    known_layers,
    latency_s,
    possible_cuts,
    quiet_parts,
    refined_cut,
    server_s,
    tensors_by_part,
    watched,
)
from fedhybrid.models.ordered import parts_of
from fedhybrid.protocols import Attendant, ClientRuntime, Optimizer, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = ["SmartSplit"]

_CLIENTS, _CUTS = "smartsplit/clients", "smartsplit/cuts"  # who has taken part, and with how many parts at last
_MOST_PARTS = 2**15  # more than any model has


@final
@dataclass(frozen=True, kw_only=True)
class SmartSplit(AbstractAveraging):
    """Split training with a cut for each client, chosen by memory and latency and refined as training goes on.

    Attributes:
        server_device: Profile of the edge server, which computes for each client; a name or one's own TOML file, which
            only the server must have.
        adjust_every: Rounds between two refinements of the cuts, which are also the checks that freezing looks at.
        latency_weight: Of a cut's latency against the importance of its layers; 0 looks at importance alone.
        importance_memory: Weight of the past in the moving averages, 0 to below 1.
        freeze_below: A tensor that moves less than this share of its length a round is quiet; 0 is never.
        freeze_checks: A tensor that was quiet in so many checks in a row counts as quiet for good. The model's first
            parts whose tensors all do are frozen on devices, but for the last one that a device could train.
        cut_every: Only every so many parts is cut, from the first possible one; few cuts are planned sooner.
        fixed_cut: Parts on every device; 0 leaves the choice to the managers. (With a number: SplitFed.)
    """

    server_device: str = "desktop"
    adjust_every: int = 5
    latency_weight: float = 0.5
    importance_memory: float = 0.9
    freeze_below: float = 0.0
    freeze_checks: int = 3
    cut_every: int = 1
    fixed_cut: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least {least}, got {value}"
            for name, value, least in (
                ("adjust_every", self.adjust_every, 1),
                ("latency_weight", self.latency_weight, 0),
                ("freeze_below", self.freeze_below, 0),
                ("freeze_checks", self.freeze_checks, 1),
                ("cut_every", self.cut_every, 1),
                ("fixed_cut", self.fixed_cut, 0),
            )
            if not (math.isfinite(value) and value >= least)
        ]
        if not 0 <= self.importance_memory < 1:
            problems.append(f"importance_memory must be in [0, 1), got {self.importance_memory}")
        if not self.server_device.endswith(".toml"):  # devices get these options, too, and have no file of the server
            problems += _device_problems(self.server_device)
        if problems:
            raise ConfigError(problems)

    @property
    def plans(self) -> bool:
        """The device's half is planned for its budget."""
        return True

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured optimizer, on both sides."""
        return base

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """Every cut, the deepest first: who can hold the first layers can take part."""
        return tuple(Cut(parts=cut).name(of=len(parts_of(model))) for cut in reversed(self._cuts(model)))

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The device's half."""
        return device_half(whole, Cut.named(name, of=len(parts_of(whole.module)))) if name else whole

    def init(self, weights: Tensors) -> ServerState:
        """The initial global model; nobody has a cut, nothing has moved.

        Raises:
            ConfigError: The edge server's profile cannot be read.
        """
        problems = _device_problems(self.server_device)
        if problems:
            raise ConfigError(problems)
        nobody = torch.zeros(0, dtype=torch.int64)
        extra = first_watch(weights) | {_CLIENTS: nobody, _CUTS: nobody.clone()}
        return replace(super().init(weights), extra=extra)

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """Each client its cut; the model's first parts go to the device, the others wait at the server."""
        manager = _Manager(method=self, server=server, plan=plan)
        tasks = []
        for client in plan.cohort:
            cut = manager.cut_for(client)
            name, parts = cut.name(of=manager.count), cut.parts
            tasks.append(
                ClientTask(
                    round_index=plan.round_index,
                    client=client,
                    weights=server.weights,
                    work=plan.work,
                    plan=plan.costs.quote(client, name).plan,
                    seed=derive_seed(plan.run_seed, purpose=plan.phase, round_index=plan.draw, client=client),
                    kind=plan.phase,
                    options={"cut": parts},
                    submodel=name,
                    sent=None if parts == manager.count else manager.tensors_before(parts),
                )
            )
        return tasks

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Ordinary training of the device's half, in whose step the server is asked for the gradient."""

        def ask(activations: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            answer = client.exchange({"activations": activations, "labels": labels})
            return answer["gradient"], answer["losses"]

        with answering(ask):
            update = train_locally(task, client)
        return replace(update, metrics={**update.metrics, "cut": float(task.options["cut"])})

    def attend(self, task: ClientTask, whole: Submodel) -> Attendant | None:
        """The server's half for this client; None where the client holds the whole model."""
        count = len(parts_of(whole.module))
        cut = Cut.named(task.submodel, of=count)
        if cut.parts == count:
            return None
        return ServerHalf(task, whole, cut=cut.parts, device=_profile(self.server_device))

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """Mean of the joined models, weighted by samples; and what the managers want to remember."""
        after = averaged_by_samples(server, updates)
        if _CUTS not in server.extra:
            return after
        check = (server.version + 1) % self.adjust_every == 0
        seen = watched(
            server.extra,
            server.weights,
            after.weights,
            memory=self.importance_memory,
            quiet_below=self.freeze_below if check else None,
            checks=self.freeze_checks,
        )
        cuts = _cuts_by_client(server.extra)
        cuts.update((update.client, cut) for update in updates if (cut := _cut_said(update)))
        clients = sorted(cuts)
        remembered = {
            _CLIENTS: torch.tensor(clients, dtype=torch.int64),
            _CUTS: torch.tensor([cuts[client] for client in clients], dtype=torch.int64),
        }
        return replace(after, extra={**server.extra, **seen, **remembered})

    def _cuts(self, model: nn.Module) -> list[int]:
        """Those that may be given out, ascending.

        Raises:
            ConfigError: The model cannot be cut at all, or not where it should be.
        """
        possible = possible_cuts(model)
        if self.fixed_cut and self.fixed_cut not in possible:
            raise ConfigError(
                f"fixed_cut must be {possible[0]} to {possible[-1]} for this model, got {self.fixed_cut}; "
                "0 leaves the choice to the managers"
            )
        if self.fixed_cut:
            return [self.fixed_cut]
        return [*possible[:-1][:: self.cut_every], possible[-1]]


@cache
def _profile(name: str) -> DeviceProfile:
    return load_profile(name)


def _device_problems(name: str) -> list[str]:
    try:
        _profile(name)
    except ConfigError as error:
        return [f"server_device: {problem}" for problem in error.problems]
    return []


def _cut_said(update: Update) -> int | None:
    """The cut that a client says it had, None where it cannot be one.

    Nobody who says it is trusted: how many parts the model has is looked up before its cut is given out again.
    """
    said = update.metrics.get("cut", 0.0)
    return int(said) if 1 <= said <= _MOST_PARTS and said == int(said) else None


def _cuts_by_client(extra: Mapping[str, Tensor]) -> dict[int, int]:
    return dict(zip(extra[_CLIENTS].tolist(), extra[_CUTS].tolist(), strict=True))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Manager:
    """Chooses the cuts of one round."""

    method: SmartSplit
    server: ServerState
    plan: RoundPlan

    @cached_property
    def model(self) -> nn.Module:
        """The whole model; its values mean nothing."""
        return self.plan.costs.whole.module

    @cached_property
    def count(self) -> int:
        """Parts of the model."""
        return len(parts_of(self.model))

    @cached_property
    def cuts(self) -> list[int]:
        """That may be given out, ascending."""
        return self.method._cuts(self.model)

    @cached_property
    def before(self) -> dict[int, int]:
        """Each client's cut of its last task, where it can still be given out."""
        return {client: cut for client, cut in _cuts_by_client(self.server.extra).items() if cut in self.cuts}

    @cached_property
    def parameters(self) -> list[list[str]]:
        """Names of each part's trained parameters."""
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        return [[name for name in own if name in trained] for own in tensors_by_part(self.model)]

    @cached_property
    def quiet(self) -> int:
        """First parts that no longer move."""
        checks = self.method.freeze_checks
        return quiet_parts(self.server.extra, list(self.server.weights), self.parameters, checks=checks)

    @cached_property
    def importance(self) -> list[float]:
        """Of each part."""
        return importance_of(self.server.extra, list(self.server.weights), self.parameters)

    def tensors_before(self, parts: int) -> tuple[str, ...]:
        """What the device's half holds."""
        return tuple(name for own in tensors_by_part(self.model)[:parts] for name in own)

    def cut_for(self, client: int) -> Cut:
        """The client's cut for this round; where nothing fits, what the engine would offer."""
        chosen = self._parts_for(client)
        if chosen is None:
            return Cut.named(self.plan.submodels[client], of=self.count)
        return self._cut(chosen)

    def _parts_for(self, client: int) -> int | None:
        held = self.before.get(client)
        if held is None:
            return fastest_cut(self._latencies_s(client, self.cuts))
        due = self.plan.round_index % self.method.adjust_every == 0 and any(self.importance)
        at, reach = self.cuts.index(held), 1 if due else 0
        near = self.cuts[max(at - reach, 0) : at + reach + 1]
        latencies_s = self._latencies_s(client, near)
        chosen = refined_cut(latencies_s, self.importance, weight=self.method.latency_weight)
        return earlier_cut(held, self._latencies_s(client, self.cuts)) if chosen is None else chosen

    def _latencies_s(self, client: int, cuts: Sequence[int]) -> dict[int, float]:
        return {cut: self._latency_s(client, cut) for cut in cuts}

    def _latency_s(self, client: int, parts: int) -> float:
        """Seconds of the client's task with so many parts; infinity where they do not fit."""
        costs = self.plan.costs
        quote = costs.quote(client, self._cut(parts).name(of=self.count))
        if not quote.fits:
            return math.inf
        x, labels = costs.example
        layers = known_layers(self.model, x)
        held = self.tensors_before(parts)
        model_bytes = sum(self.server.weights[name].nbytes for name in held)
        exchange_s = 0.0
        if parts < self.count:
            bytes_up, bytes_down = exchange_bytes(layers[parts - 1].output_bytes, labels)
            exchange_s = costs.link_s(client, bytes_up=bytes_up, bytes_down=bytes_down)
        return latency_s(
            steps=costs.steps(client, self.plan.work),
            device_step_s=quote.step_s,
            exchange_s=exchange_s,
            server_step_s=server_s(layers[parts:], _profile(self.method.server_device)),
            model_s=costs.link_s(client, bytes_up=model_bytes, bytes_down=model_bytes),
        )

    def _cut(self, parts: int) -> Cut:
        """With those of its parts frozen that are quiet, as long as something is left to train."""
        last = max((number for number in range(parts) if self.parameters[number]), default=0)
        return Cut(parts=parts, frozen=min(self.quiet, last))
