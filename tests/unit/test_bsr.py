"""BSR: what trains, what travels, and what a training step holds, for the method's own twelve blocks."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.federation_parts import recipe
from torch import Tensor, nn

import fedhybrid as fh
from fedhybrid.engine.runtime import classification_loss, one_thread
from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, PlanOptions, PreparedStep, TrainStep, prepare_step
from fedhybrid.methods import Bsr, find_method
from fedhybrid.models import build_model
from fedhybrid.protocols import Costs, RoundPlan, ServerState, Submodel
from fedhybrid.records import LocalWork, Update
from fedhybrid.tree import detached_copy, tensors_of, total_bytes

RECIPE = Path(__file__).parents[2] / "recipes/methods/bsr.toml"
MENU = ("b3-7-11", "b7-11", "b11", "head")
TWELVE = {"depth": 12, "dim": 64, "heads": 4, "patch": 4, "token": "class"}
BATCH = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 10


def whole_of(method: Bsr, **options: Any) -> Submodel:
    options = TWELVE | options
    model = build_model("vit", input_shape=(1, 32, 32), classes=10, seed=0, options=options)
    adapted = method.adapt(model, BATCH[0])
    return Submodel(module=adapted, loss_fn=classification_loss, optimizer=SGD(lr=0.1, momentum=0.9))


def prepared_of(method: Bsr, name: str, **options: Any) -> PreparedStep:
    part = method.submodel(whole_of(method, **options), name)
    with one_thread():
        return prepare_step(part.module, part.loss_fn, BATCH, part.optimizer, op_seconds=lambda operator: 1e-6)


def saved_bytes(module: nn.Module) -> int:
    """What autograd keeps of one forward pass beside the parameters, each storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *BATCH)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        classification_loss(module(BATCH[0]), BATCH[1])
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def trained_names(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def owners(names: set[str]) -> set[str]:
    """The blocks and layers that tensors belong to."""
    return {".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1]) for name in names}


class TestSubmodels:
    def test_the_menu_begins_with_all_blocks(self) -> None:
        assert Bsr().menu(nn.Identity()) == MENU
        assert Bsr(blocks="").menu(nn.Identity()) == ("head",)
        assert find_method("bsr")().menu(nn.Identity()) == MENU

    @pytest.mark.parametrize(
        ("name", "trained"),
        [
            ("b3-7-11", {"blocks.3", "blocks.7", "blocks.11", "norm", "head"}),
            ("b11", {"blocks.11", "norm", "head"}),
            ("head", {"norm", "head"}),
        ],
    )
    def test_a_step_changes_these_alone(self, name: str, trained: set[str]) -> None:
        part = Bsr().submodel(whole_of(Bsr()), name)
        assert owners(trained_names(part.module)) == trained
        before = detached_copy(tensors_of(part.module))
        with one_thread():
            prepared = prepare_step(part.module, part.loss_fn, BATCH, part.optimizer, op_seconds=lambda operator: 1e-6)
            step = TrainStep(prepared, prepared.keep_all())
            step(*BATCH)
            step(*BATCH)
        after = tensors_of(part.module)
        changed = {each for each in after if not torch.equal(after[each], before[each])}
        assert changed == trained_names(part.module)
        assert set(step.optimizer_state) == changed

    def test_the_whole_model_is_left_as_it_is(self) -> None:
        whole = whole_of(Bsr())
        part = Bsr().submodel(whole, "b11")
        assert all(parameter.requires_grad for parameter in whole.module.parameters())
        shared = {p.data_ptr() for p in whole.module.parameters()} & {p.data_ptr() for p in part.module.parameters()}
        assert not shared
        assert Bsr().submodel(whole, "") is whole

    def test_gradients_are_those_of_the_whole_model(self) -> None:
        whole = whole_of(Bsr())
        part = Bsr().submodel(whole, "b7-11").module
        for module in (whole.module, part):
            classification_loss(module(BATCH[0]), BATCH[1])[0].backward()
        reference = dict(whole.module.named_parameters())
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, reference[name].grad, rtol=1e-4, atol=1e-6)
            else:
                assert parameter.grad is None


class TestMemory:
    def test_saved_bytes_fall_from_all_to_some_blocks_to_fewer_tokens(self) -> None:
        plain, method = Bsr(drop_at=""), Bsr()
        full = saved_bytes(whole_of(plain).module)
        blocks = saved_bytes(plain.submodel(whole_of(plain), "b3-7-11").module)
        fewer = [saved_bytes(method.submodel(whole_of(method), name).module) for name in MENU]
        assert full > blocks > fewer[0] > fewer[1] > fewer[2] > fewer[3]
        assert blocks / fewer[0] > 1.4
        prefix = plain.submodel(whole_of(plain), "b11").module
        assert saved_bytes(prefix) < full / 8, "eleven blocks keep nothing"

    @pytest.mark.parametrize("name", [MENU[0], MENU[-1]])
    def test_planned_peaks_are_measured(self, name: str) -> None:
        prepared = prepared_of(Bsr(), name)
        with one_thread():
            step = TrainStep(prepared, prepared.keep_all())
            assert step.measured_peak_bytes() == step.plan.peak_bytes

    def test_recomputing_and_codecs_go_below_it(self) -> None:
        """BSR with plans: less than its own step needs, still exactly what is measured."""
        prepared = prepared_of(Bsr(blocks="1-3", drop_at="1-2"), "b1-3", depth=4)
        with one_thread():
            own = TrainStep(prepared, prepared.keep_all()).measured_peak_bytes()
            limit = prepared.resident_bytes + (own - prepared.resident_bytes) * 6 // 10
            for options in (
                PlanOptions(actions=("recompute",), time_limit_s=None),
                PlanOptions(actions=("encode",), codecs=("mesa",), max_gradient_error=float("inf"), time_limit_s=None),
                PlanOptions(actions=("encode",), codecs=("channel-mix",), max_gradient_error=0.2, time_limit_s=None),
            ):
                plan = prepared.planned(limit, options)
                step = TrainStep(prepared, plan)
                assert step.measured_peak_bytes() == plan.peak_bytes <= limit
                assert bool(step(*BATCH).isfinite())

    def test_dropping_lowers_the_peak_of_the_same_blocks(self) -> None:
        peaks = []
        for drop_at in ("", "1-2"):
            prepared = prepared_of(Bsr(blocks="1-3", drop_at=drop_at), "b1-3", depth=4)
            peaks.append(prepared.keep_all().peak_bytes - prepared.resident_bytes)
        assert peaks[0] / peaks[1] > 1.4


class TestTravel:
    def server(self) -> ServerState:
        return Bsr().init(tensors_of(whole_of(Bsr()).module))

    def plan(self, **submodels: str) -> RoundPlan:
        chosen = {int(client.removeprefix("c")): name for client, name in submodels.items()}
        return RoundPlan(
            round_index=0,
            cohort=tuple(chosen),
            plans=dict.fromkeys(chosen),
            work=LocalWork(epochs=1, batch_size=8, lr=0.1),
            run_seed=1,
            draw=0,
            costs=cast(Costs, None),
            submodels=chosen,
        )

    def update(self, client: int, weights: dict[str, Tensor], samples: int = 1) -> Update:
        return Update(
            client=client,
            round_index=0,
            weights=weights,
            num_samples=samples,
            samples_seen=1,
            steps=1,
            loss_mean=1.0,
            squared_loss_sum=1.0,
            measured_peak_bytes=1,
        )

    def test_the_frozen_tensors_travel_once_to_each_client(self) -> None:
        method, server = Bsr(), self.server()
        first = method.assign(server, self.plan(c2="b11", c5="head"))
        assert [(task.submodel, task.sent) for task in first] == [("b11", None), ("head", None)]
        assert first[0].weights is first[1].weights
        server = method.aggregate(server, [self.update(5, {})])
        tasks = method.assign(server, self.plan(c2="b11", c5="head"))
        assert tasks[0].sent is None, "its first task did not come back"
        assert tasks[1].sent is not None
        assert owners(set(tasks[1].sent)) == {"blocks.3", "blocks.7", "blocks.11", "norm", "head"}, "others train these"
        server = method.aggregate(server, [self.update(2, {}), self.update(5, {})])
        assert all(task.sent for task in method.assign(server, self.plan(c2="b11", c5="head")))

    def test_each_tensor_is_averaged_over_those_who_trained_it(self) -> None:
        method, server = Bsr(), self.server()
        zeros = {name: torch.zeros_like(tensor) for name, tensor in server.weights.items()}
        ones = {name: torch.ones_like(tensor) for name, tensor in server.weights.items()}
        all_of_it = {name for name in zeros if owners({name}) <= {"blocks.3", "blocks.7", "blocks.11", "norm", "head"}}
        head = {name for name in zeros if owners({name}) <= {"norm", "head"}}
        updates = [
            self.update(0, {name: ones[name] for name in all_of_it}, samples=1),
            self.update(1, {name: zeros[name] for name in head}, samples=3),
        ]
        after = method.aggregate(server, updates).weights
        for name, tensor in after.items():
            expected = server.weights[name] if name not in all_of_it else ones[name] * (0.25 if name in head else 1.0)
            assert torch.equal(tensor, expected), name

    def test_what_nobody_trains_is_taken_from_no_update(self) -> None:
        """Clients that have the frozen tensors never get them again, so they must stay what they were for all."""
        method, server = Bsr(), self.server()
        nines = {name: torch.full_like(tensor, 9) for name, tensor in server.weights.items()}
        after = method.aggregate(server, [self.update(0, nines)]).weights
        changed = {name for name, tensor in after.items() if not torch.equal(tensor, server.weights[name])}
        assert owners(changed) == {"blocks.3", "blocks.7", "blocks.11", "norm", "head"}


def small_run(**changes: Any) -> dict[str, Any]:
    """Six blocks on four kinds of device, one for each set of blocks."""
    budgets = {"head": 374_000, "one": "1%", "two": "20%", "three": "100%"}
    tiers = [{"name": name, "budget": budget, "device": "laptop"} for name, budget in budgets.items()]
    return (
        recipe(
            method="bsr",
            method_options={"blocks": "1-3-5", "drop_at": "1-3"},
            policy="uniform",
            model="vit",
            model_options={"depth": 6, "dim": 24, "heads": 3, "patch": 8, "token": "class"},
            rounds=2,
            data={"clients": 8, "alpha": 5.0},
            fleet={"clients_per_round": 8, "tiers": tiers},
            train={"batch_size": 8, "steps": 2, "momentum": 0.9},
        )
        | changes
    )


def test_a_run_sends_exactly_what_trains(tmp_path: Path) -> None:
    result = fh.run(small_run(), out=tmp_path / "run")
    method = Bsr(blocks="1-3-5", drop_at="1-3")
    options = {"depth": 6, "dim": 24, "heads": 3, "patch": 8}
    whole = whole_of(method, **options)
    weights = tensors_of(whole.module)
    sizes = {}
    for name in method.menu(whole.module):
        trained = trained_names(method.submodel(whole, name).module)
        sizes[name] = total_bytes({each: weights[each] for each in trained})
    records = [each for each in result.clients if each.outcome == "completed"]
    assert len(records) == 16
    choices = {"head": "head", "one": "b5", "two": "b3-5", "three": "b1-3-5"}
    assert all(each.submodel == choices[each.tier] for each in records), "budgets choose"
    assert all(each.bytes_up == sizes[each.submodel] for each in records)
    assert all(each.measured_peak_bytes <= each.budget_bytes for each in records)
    first, second = ({each.client: each.bytes_down for each in records if each.round == number} for number in (0, 1))
    assert set(first.values()) == {total_bytes(weights)}
    assert set(second.values()) == {sizes["b1-3-5"]}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"blocks": "3,7"}, "blocks must be numbers of blocks, ascending, joined by '-'"),
        ({"blocks": "7-3"}, "blocks must be numbers of blocks, ascending"),
        ({"drop_at": "3-3"}, "drop_at must be numbers of blocks, ascending"),
        ({"keep_ratio": 0.0}, "keep_ratio must be above 0 and at most 1"),
        ({"keep_ratio": float("nan")}, "keep_ratio must be above 0 and at most 1"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Bsr(**options)
    assert [told in problem for problem in caught.value.problems] == [True]


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        (Bsr(), {"depth": 8}, "blocks 0 to 7 of this model, found 9"),
        (Bsr(drop_at=""), {"depth": 8}, "method_options.blocks must be 0 to 7 in this model, found 11"),
        (Bsr(), {"token": "mean"}, 'token = "class"'),
    ],
)
def test_models_that_do_not_suit(method: Bsr, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        whole_of(method, **options)


@pytest.mark.slow
def test_fine_tuned_blocks_are_at_least_as_good_as_the_head_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe's model, pre-trained on the digits 0 to 4, learns the others, where everybody holds all of it."""
    monkeypatch.setenv("FEDHYBRID_CACHE", str(tmp_path / "cache"))
    raw = tomllib.loads(RECIPE.read_text())
    del raw["compare"]
    settings = {"data.alpha": 5.0, "fleet.tiers": [{"name": "all", "budget": "100%", "device": "laptop"}], "rounds": 8}
    best = {}
    for blocks in ("3-7-11", ""):
        result = fh.run(raw, out=tmp_path / f"b{blocks}", overrides=settings | {"method_options.blocks": blocks})
        best[blocks] = max(each.accuracy or 0.0 for each in result.rounds)
    assert best["3-7-11"] >= best[""]
    assert best["3-7-11"] > 0.3  # chance is 0.2
