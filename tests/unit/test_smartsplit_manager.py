"""Who gets which cut, round after round: the managers' decisions on a table of what cuts need and take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import final

import pytest
import torch
from tests.scene_parts import update_of
from torch import Tensor, nn

from fedhybrid.engine.runtime import classification_loss, steps_of
from fedhybrid.executor import SGD
from fedhybrid.methods import SmartSplit
from fedhybrid.methods.splitting import exchange_bytes, layers_of
from fedhybrid.protocols import Quote, RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, LocalWork, TensorTimes
from fedhybrid.tree import detached_copy, tensors_of

WORK = LocalWork(epochs=1, batch_size=4, lr=0.1)
LAYERS = 4
X, Y = torch.ones(4, 6), torch.tensor([0, 1, 2, 0])


def model() -> nn.Module:
    sizes = [6, 8, 7, 5, 3]
    generator = torch.Generator().manual_seed(0)
    found = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    with torch.no_grad():
        for param in found.parameters():
            param.copy_(torch.randn(param.shape, generator=generator))
    return found


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Costs by hand: what each cut needs and takes on every device, and what each client has."""

    budgets: Mapping[int, int]
    step_s: Mapping[int, float]
    needs: Mapping[int, int] = field(default_factory=lambda: {cut: 10 * cut for cut in range(1, LAYERS + 1)})
    bytes_per_s: float = 1e9
    whole: Submodel = field(
        default_factory=lambda: Submodel(module=model(), loss_fn=classification_loss, optimizer=SGD(lr=0.1))
    )

    @property
    def example(self) -> tuple[Tensor, Tensor]:
        return X, Y

    def quote(self, client: int, submodel: str = "") -> Quote:
        cut = int(submodel.removeprefix("cut-").partition(".")[0] or LAYERS)
        fits = self.needs[cut] <= self.budgets[client]
        return Quote(
            plan=f"plan@{submodel}" if fits else None,
            peak_bytes=self.needs[cut],
            step_s=self.step_s[cut] if fits else math.inf,
        )

    def budget_bytes(self, client: int) -> int:
        return self.budgets[client]

    def num_samples(self, client: int) -> int:
        return 10

    def steps(self, client: int, work: LocalWork) -> int:
        return steps_of(work, 10)

    def link_s(self, client: int, *, bytes_up: int = 0, bytes_down: int = 0) -> float:
        return (bytes_up + bytes_down) / self.bytes_per_s

    def step_seconds(self, submodel: str = "") -> tuple[float, ...]:
        return (1.0,)

    def tensor_times(self, client: int, submodel: str = "") -> TensorTimes:
        return TensorTimes(forward_s=1.0, pass_s={}, weight_s={}, names=())


SHALLOW_IS_FAST = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
DEEP_IS_FAST = {1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}


def assigned(
    method: SmartSplit, server: ServerState, costs: Table, version: int = 0, steps: int = 2
) -> list[ClientTask]:
    cohort = tuple(sorted(costs.budgets))
    plan = RoundPlan(
        round_index=version,
        cohort=cohort,
        plans=dict.fromkeys(cohort),
        submodels=dict.fromkeys(cohort, "cut-1"),
        work=replace(WORK, steps=steps),
        run_seed=3,
        draw=version,
        costs=costs,
    )
    return method.assign(replace(server, version=version), plan)


def submodels(method: SmartSplit, server: ServerState, costs: Table, version: int = 0, steps: int = 2) -> list[str]:
    return [task.submodel for task in assigned(method, server, costs, version, steps)]


def played(
    method: SmartSplit, server: ServerState, cuts: Mapping[int, float], moved: Mapping[str, float]
) -> ServerState:
    """After a round in which these clients had these cuts, and tensors changed by these factors."""
    weights = {name: tensor * (1 + moved.get(name, 0.0)) for name, tensor in server.weights.items()}
    updates = [
        replace(update_of(weights, client=client, round_index=server.version), metrics={"cut": float(cut)})
        for client, cut in cuts.items()
    ]
    return replace(method.aggregate(server, updates), version=server.version + 1)


def start(method: SmartSplit) -> ServerState:
    return method.init(detached_copy(tensors_of(model())))


def everything_moves(share: float) -> dict[str, float]:
    return dict.fromkeys(tensors_of(model()), share)


class TestFirstChoice:
    def test_the_fastest_cut_that_fits(self) -> None:
        budgets = {0: 100, 1: 39, 2: 20, 3: 10}
        method = SmartSplit()
        assert submodels(method, start(method), Table(budgets=budgets, step_s=DEEP_IS_FAST)) == [
            "",
            "cut-3",
            "cut-2",
            "cut-1",
        ]
        assert submodels(method, start(method), Table(budgets=budgets, step_s=SHALLOW_IS_FAST)) == ["cut-1"] * 4

    def test_on_a_slow_link_few_steps_are_asked_and_many_are_not(self) -> None:
        """The first cut sends 304 bytes a step and its half of 448, the whole model 1,416 bytes once."""
        layers = layers_of(model(), X)
        assert sum(exchange_bytes(layers[0].output_bytes, Y)) == 304
        assert 2 * layers[0].parameter_bytes == 448
        assert 2 * sum(layer.parameter_bytes for layer in layers) == 1416
        method, costs = SmartSplit(), Table(budgets={0: 100}, step_s=SHALLOW_IS_FAST, bytes_per_s=1.0)
        assert submodels(method, start(method), costs) == ["cut-1"]
        assert submodels(method, start(method), costs, steps=5) == [""]

    def test_tasks_say_all_that_devices_and_servers_need(self) -> None:
        method, costs = SmartSplit(), Table(budgets={0: 100, 1: 20}, step_s=DEEP_IS_FAST)
        server = start(method)
        whole, half = assigned(method, server, costs)
        assert (whole.plan, half.plan) == ("plan@", "plan@cut-2")
        assert whole.sent is None
        assert half.sent == ("0.weight", "0.bias", "1.weight", "1.bias")
        assert whole.weights is half.weights is server.weights  # packed once
        assert method.attend(whole, costs.whole) is None
        attendant = method.attend(half, costs.whole)
        assert attendant is not None
        assert sorted(attendant.result()) == ["2.bias", "2.weight", "3.bias", "3.weight"]

    def test_where_nothing_fits_the_engine_s_offer_stands(self) -> None:
        method = SmartSplit()
        (task,) = assigned(method, start(method), Table(budgets={0: 5}, step_s=DEEP_IS_FAST))
        assert (task.submodel, task.plan) == ("cut-1", None)

    def test_a_fixed_cut_is_everybody_s(self) -> None:
        method = SmartSplit(fixed_cut=2)
        assert submodels(method, start(method), Table(budgets={0: 100, 1: 25}, step_s=DEEP_IS_FAST)) == ["cut-2"] * 2


class TestRefinement:
    def test_a_cut_moves_by_one_and_only_when_it_is_due(self) -> None:
        method = SmartSplit(adjust_every=2, latency_weight=0.0)
        costs = Table(budgets={0: 100}, step_s=SHALLOW_IS_FAST)
        server, found = start(method), []
        for version in range(7):
            name = submodels(method, server, costs, version)[0]
            cut = int(name.removeprefix("cut-") or LAYERS)
            found.append(cut)
            server = played(method, server, {0: cut}, everything_moves(0.1))
        assert found == [1, 1, 2, 2, 3, 3, 4]

    def test_it_moves_between_the_cuts_that_are_given_out(self) -> None:
        method = SmartSplit(adjust_every=1, latency_weight=0.0, cut_every=2)
        costs = Table(budgets={0: 100}, step_s=SHALLOW_IS_FAST)
        server, found = start(method), []
        for version in range(3):
            found += submodels(method, server, costs, version)
            server = played(method, server, {0: int(found[-1].removeprefix("cut-") or LAYERS)}, everything_moves(0.1))
        assert found == ["cut-1", "cut-3", ""]

    def test_latency_holds_it_back(self) -> None:
        method = SmartSplit(adjust_every=1, latency_weight=2.0)
        costs = Table(budgets={0: 100}, step_s=SHALLOW_IS_FAST)
        server = played(method, start(method), {0: 3}, everything_moves(0.1))
        assert submodels(method, server, costs, 1) == ["cut-2"]

    def test_importance_alone_decides_without_latency(self) -> None:
        """Nothing behind part 2 moves: cut 3 holds no more importance than cut 2, and ties go deeper."""
        method = SmartSplit(adjust_every=1, latency_weight=0.01)
        costs = Table(budgets={0: 100}, step_s=SHALLOW_IS_FAST)
        moved = {name: 0.5 for name in everything_moves(0.5) if name[0] in "01"}
        server = played(method, start(method), {0: 2}, moved)
        assert submodels(method, server, costs, 1) == ["cut-2"]

    def test_less_memory_than_before_means_an_earlier_cut_at_once(self) -> None:
        method = SmartSplit(adjust_every=100)
        server = played(method, start(method), {0: 4, 1: 3}, everything_moves(0.1))
        rich, poor = (dict.fromkeys((0, 1), budget_bytes) for budget_bytes in (100, 25))
        assert submodels(method, server, Table(budgets=rich, step_s=SHALLOW_IS_FAST), 1) == ["", "cut-3"]
        assert submodels(method, server, Table(budgets=poor, step_s=SHALLOW_IS_FAST), 1) == ["cut-2", "cut-2"]

    def test_what_clients_say_of_their_cuts_is_remembered_for_each(self) -> None:
        method = SmartSplit(adjust_every=100)
        costs = Table(budgets={0: 100, 1: 100, 2: 100}, step_s=DEEP_IS_FAST)
        server = played(method, start(method), {1: 2}, everything_moves(0.1))
        server = played(method, server, {0: 3}, everything_moves(0.1))
        assert submodels(method, server, costs, 2) == ["cut-3", "cut-2", ""]
        server = played(method, server, {1: 77}, everything_moves(0.1))  # no cut of this model
        assert submodels(method, server, costs, 3) == ["cut-3", "", ""]

    @pytest.mark.parametrize("said", [1e300, 1e10, math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 2.5])
    def test_what_can_be_no_cut_is_not_believed(self, said: float) -> None:
        method = SmartSplit(adjust_every=100)
        costs = Table(budgets={0: 100, 1: 100}, step_s=DEEP_IS_FAST)
        server = played(method, start(method), {0: 3, 1: 2}, everything_moves(0.1))
        server = played(method, server, {0: said}, everything_moves(0.1))
        assert submodels(method, server, costs, 2) == ["cut-3", "cut-2"]

    def test_tensors_that_the_model_does_not_have_are_left_out(self) -> None:
        method = SmartSplit()
        server = start(method)
        weights = {**server.weights, "smartsplit/cuts": torch.ones(1), "4.weight": torch.ones(3)}
        after = method.aggregate(server, [update_of(weights)])
        assert list(after.weights) == list(server.weights)


class TestFreezing:
    def test_first_parts_that_no_longer_move_are_frozen_and_stay_so(self) -> None:
        method = SmartSplit(adjust_every=1, freeze_below=0.01, freeze_checks=2, importance_memory=0.0)
        costs = Table(budgets={0: 100, 1: 10, 2: 20}, step_s=DEEP_IS_FAST)
        moved = {name: 0.5 for name in everything_moves(0.5) if name[0] in "23"}
        server, cuts = start(method), {0: 4, 1: 1, 2: 2}
        server = played(method, server, cuts, moved)
        assert submodels(method, server, costs, 1) == ["", "cut-1", "cut-2"]
        server = played(method, server, cuts, moved)
        assert submodels(method, server, costs, 2) == ["cut-4.f2", "cut-1", "cut-2.f1"]  # something is left to train
        half = method.submodel(costs.whole, "cut-4.f2")
        assert [name for name, p in half.module.named_parameters() if p.requires_grad] == [
            "2.weight",
            "2.bias",
            "3.weight",
            "3.bias",
        ]
        assert half.loss_fn is classification_loss
        for version in range(3, 5):  # the second client, which can hold nothing else, goes on with the first part
            server = played(method, server, cuts, moved | {"0.weight": 0.5, "0.bias": 0.5})
            assert submodels(method, server, costs, version) == ["cut-4.f2", "cut-1", "cut-2.f1"]

    def test_by_default_nothing_is_frozen(self) -> None:
        method = SmartSplit(adjust_every=1, freeze_checks=1)
        server = played(method, start(method), {0: 4}, {})
        assert submodels(method, server, Table(budgets={0: 100}, step_s=DEEP_IS_FAST), 1) == [""]
