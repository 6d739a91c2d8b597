"""MEST as a method: masks that the server owns, what travels, what clients do, and FedAvg where nothing is sparse."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.federation_parts import small_model
from tests.run_parts import small
from tests.scene_parts import same_tensors, update_of
from tests.sparse_parts import Group, small_net
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.engine.runtime import LocalClient, Station, Stretch, one_thread
from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, Adam, TrainStep
from fedhybrid.methods.mest import Mest
from fedhybrid.methods.sparse import ClientFacts, layouts_of, mask_of, received_masks
from fedhybrid.records import LocalWork
from fedhybrid.tree import tensors_of, total_bytes

SLOW = pytest.mark.slow
SHARDS = [np.arange(0, 40), np.arange(40, 59), np.arange(60, 84)]


def quick(**options: Any) -> Mest:
    """Mutations in every round; the phases change in rounds 2 and 4."""
    return Mest(**({"mutate_every": 1, "second_phase": 2, "last_phase": 4} | options))


def group(method: Mest, **changes: Any) -> Group:
    """Three clients with digits."""
    return Group(**({"method": method, "model": small_net(), "shards": SHARDS} | changes))


class TestOptions:
    def test_everything_that_is_wrong_is_said_at_once(self) -> None:
        with pytest.raises(ConfigError) as raised:
            Mest(sparsity=1.0, variant="ems", scheme="rows", mutate_every=0, drop_ratio=1.0, gradient_weight=-1.0)
        assert len(raised.value.problems) == 6

    @pytest.mark.parametrize(
        "options",
        [{"sparsity": 0.04}, {"sparsity": 0.99, "variant": "em"}, {"sparsity": 0.6, "scheme": "pattern"}],
    )
    def test_sparsities_of_all_phases_must_be_possible(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="mutation_ratio"):
            Mest(**options)

    def test_a_pattern_cannot_be_denser_than_four_of_nine(self) -> None:
        assert Mest(sparsity=0.61, scheme="pattern").menu(small_net()) == ("s0.56", "s0.585", "s0.61")

    def test_a_model_with_nothing_to_prune_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="use a deeper model"):
            Mest(scheme="channel").adapt(
                torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), torch.zeros(1)
            )

    def test_gradients_are_read_from_sgd(self) -> None:
        with pytest.raises(ConfigError, match="gradient_weight = 0"):
            Mest().optimizer(Adam(lr=0.1))
        assert Mest(gradient_weight=0.0).optimizer(Adam(lr=0.1)) == Adam(lr=0.1)

    def test_the_menu_has_the_sparsities_that_are_trained(self) -> None:
        assert Mest().menu(small_net()) == ("s0.85", "s0.875", "s0.9")
        assert Mest(variant="em").menu(small_net()) == ("s0.9",)
        assert Mest(sparsity=0.0).menu(small_net()) == ("",)

    @pytest.mark.parametrize(
        "options",
        [
            {"sparsity": 2 / 3, "variant": "em"},
            {"sparsity": 2 / 3, "variant": "static"},
            {"mutation_ratio": 0.0333333333},
            {"sparsity": 0.1234567, "mutation_ratio": 0.12344},
        ],
    )
    def test_names_say_sparsities_exactly(self, options: dict[str, Any]) -> None:
        made = group(quick(**options), shards=SHARDS[:1])
        names = made.method.menu(made.adapted)
        assert [float(name[1:]) for name in names] == sorted({phase.upper for phase in made.method.schedule.phases})
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
        for version in (0, 2, 4):
            made.server = replace(made.server, version=version)
            phase = made.method.schedule.phase_at(version)
            assert [task.options["mask"] for task in made.method.assign(made.server, made.plan())] == ["whole"]
            name = made.method.assign(made.server, made.plan())[0].submodel
            assert float(name[1:]) == phase.upper
        task = made.method.assign(made.method.init(tensors_of(made.adapted)), replace(made.plan(), round_index=0))[0]
        module = made.method.submodel(made.whole, task.submodel).module
        assert {n: t.shape for n, t in tensors_of(module).items()}.items() <= {
            n: t.shape for n, t in task.weights.items()
        }.items()


class TestNothingSparse:
    def test_it_is_fedavg_bit_for_bit(self, tmp_path: Path) -> None:
        common = {"rounds": 2, "data": {"clients": 5}, "train": {"batch_size": 8, "steps": 3, "lr": 0.05}}
        fh.run(small(method="fedavg", **common), out=tmp_path / "fedavg")
        fh.run(small(method="mest", method_options={"sparsity": 0.0}, **common), out=tmp_path / "mest")
        theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("fedavg", "mest"))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())

    def test_the_step_is_the_recipes_own(self) -> None:
        made = group(Mest(sparsity=0.0))
        assert made.method.submodel(made.whole, "").module is made.whole.module
        assert made.adapted is made.model


class TestRounds:
    @pytest.mark.parametrize("variant", ["em", "em-s", "static"])
    def test_what_is_masked_stays_zero_everywhere(self, variant: str) -> None:
        """After every round in the global model; in clients' steps there is no place where it could be otherwise."""
        seen: list[str] = []

        def watch(station: Station, name: str) -> None:
            step = station.step
            assert isinstance(step, TrainStep)
            for path, layout in layouts_of(made.server.weights, "irregular").items():
                kept = layout.kept(float(name[1:]))
                values = station.tensors[f"{path}.values"]
                assert values.numel() == kept
                momentum = step.state.tensors[f"{path}.values"]["momentum_buffer"]
                assert momentum.shape == values.shape
                assert f"{path}.weight" not in station.tensors
            seen.append(name)

        made = group(quick(variant=variant), watch=watch)
        bound = {"em": 0.9, "em-s": 0.85, "static": 0.9}[variant]
        masks = []
        for number in range(6):
            made.round()
            phase = made.method.schedule.phase_at(number + 1)
            assert phase.upper >= bound
            for path, layout in layouts_of(made.server.weights, "irregular").items():
                places = layout.numbers(made.server.extra[f"{path}.places"]).long()
                assert len(places) == layout.kept(phase.upper) <= layout.kept(bound)
                outside = torch.ones(layout.numel, dtype=torch.bool)
                outside[places] = False
                assert not made.server.weights[f"{path}.weight"].flatten()[outside].any()
            masks.append(made.server.extra["hidden.places"])
        changed = [not torch.equal(a, b) for a, b in itertools.pairwise(masks)]
        # After round 4 (the fifth entry) the last phase holds, with the prune that begins it.
        expected = {"em": [True, True, False, False, False], "em-s": [True, True, True, False, False]}
        assert changed == expected.get(variant, [False] * 5)
        assert len(seen) == 18

    def test_clients_come_to_the_servers_masks_by_what_they_are_told(self) -> None:
        """Only what `sent` names reaches them here: first places, then nothing or one bit a unit and a seed."""
        made = group(quick(mutate_every=2, second_phase=4, last_phase=6))
        kinds = []
        for _ in range(8):
            before = made.server
            tasks = made.method.assign(before, made.plan())
            assert all(task.weights is tasks[0].weights for task in tasks)
            sent = tasks[0].sent
            assert sent is not None
            kinds.append("places" if "hidden.places" in sent else "stays" if "hidden.stays" in sent else "")
            made.round()
            for path in layouts_of(before.weights, "irregular"):
                assert torch.equal(made.states[0][f"whole.{path}.places"], mask_of(before.extra, path).places)
            told = total_bytes({n: tasks[0].weights[n] for n in sent if n.endswith((".stays", ".mutation"))})
            places = total_bytes({n: t for n, t in tasks[0].weights.items() if n.endswith(".places")})
            assert told < places / 8
        assert kinds == ["places", "", "stays", "", "stays", "", "stays", ""]

    @pytest.mark.parametrize("scheme", ["pattern", *(pytest.param(name, marks=SLOW) for name in ("block", "channel"))])
    def test_other_schemes(self, scheme: str) -> None:
        made = group(quick(scheme=scheme, sparsity=0.8), shards=SHARDS[:1])
        for _ in range(3):
            before = made.server
            updates = made.round()
            assert 0 < updates[0].loss_mean < 5
            for path in layouts_of(before.weights, scheme):
                mask = mask_of(before.extra, path)
                assert torch.equal(made.states[0][f"whole.{path}.places"], mask.places)
                if mask.patterns is not None:
                    assert torch.equal(made.states[0][f"whole.{path}.patterns"], mask.patterns)

    def test_a_client_that_was_away_gets_the_whole_mask(self) -> None:
        made = group(quick(), shards=SHARDS[:2])
        made.round()
        before = made.server
        updates = made.round()
        assert "hidden.stays" in (made.method.assign(made.server, made.plan())[1].sent or ())
        # Had client 1 been away in that round, its mask would be two mutations old.
        made.server = replace(made.method.aggregate(before, updates[:1]), version=before.version + 1)
        sent = made.method.assign(made.server, made.plan())[1].sent
        assert sent is not None
        assert "hidden.places" in sent
        assert not any(name.endswith((".stays", ".mutation")) for name in sent)

    def test_who_kept_nothing_takes_what_the_task_holds(self) -> None:
        made = group(quick(), shards=SHARDS[:1])
        made.round()
        task = made.method.assign(made.server, made.plan())[0]
        layouts = layouts_of(made.server.weights, "irregular")
        masks = received_masks(task.weights, task.sent, {}, layouts, 0.85, bar_just_pruned=False)
        assert all(torch.equal(mask, task.weights[name]) for name, mask in masks.items())


class TestBudgets:
    def test_who_cannot_hold_what_is_grown_trains_the_rest(self) -> None:
        """The soft bound's extra weights stay with those who can; each weight is averaged over those who trained it."""
        made = group(quick(gradient_weight=0.0), shards=SHARDS[:2], offered={0: "s0.85", 1: "s0.9"})
        before = made.server
        tasks = made.method.assign(before, made.plan())
        assert [task.submodel for task in tasks] == ["s0.85", "s0.9"]
        found = before.extra["hidden.survivors"]
        assert torch.equal(tasks[1].weights["hidden.places"], tasks[0].weights["hidden.places"][found])
        assert torch.equal(tasks[1].weights["hidden.values"], tasks[0].weights["hidden.values"][found])
        made.method = replace(made.method, mutate_every=100)  # look at the mean before anything is pruned
        whole, part = made.round()
        layout = layouts_of(before.weights, "irregular")["hidden"]
        mean = layout.gathered(made.server.weights["hidden.weight"], before.extra["hidden.places"])
        assert torch.equal(mean[~found], whole.weights["hidden.values"][~found])
        shares = torch.tensor([40 / 59, 19 / 59], dtype=torch.float64)
        expected = shares[0] * whole.weights["hidden.values"][found] + shares[1] * part.weights["hidden.values"]
        torch.testing.assert_close(mean[found], expected.float())
        assert made.server.extra["sparse.facts"].tolist() == [[1, -1, -1], [-1, 1, -1]]

    def test_only_what_is_trained_is_taken_from_an_update(self) -> None:
        """Neither masks nor gradients without the values that they belong to."""
        made = group(quick(), shards=SHARDS[:2], offered={0: "s0.85", 1: "s0.9"})
        before = made.server
        tasks = made.method.assign(before, made.plan())
        whole, part = made.round()
        given = {name: tensor for name, tensor in part.weights.items() if name.endswith(".slopes")}
        assert given, "they were asked for"
        given |= {name: tensor * 0 for name, tensor in tasks[1].weights.items() if name.endswith(".places")}
        after = made.method.aggregate(before, [whole, replace(part, weights=given)])
        expected = made.method.aggregate(before, [whole])
        assert same_tensors(after.weights, expected.weights)
        assert same_tensors(after.extra, expected.extra)

    def test_a_submodel_that_was_not_offered_is_asked_for(self) -> None:
        made = group(quick(), offered=dict.fromkeys(range(3), "s0.875"))
        tasks = made.method.assign(made.server, made.plan())
        assert {task.submodel for task in tasks} == {"s0.9"}
        assert made.plan_costs.asked == [(0, "s0.9"), (1, "s0.9"), (2, "s0.9")]
        assert {task.plan for task in tasks} == {"plan@s0.9"}

    def test_the_hard_bound_offers_one_size(self) -> None:
        made = group(quick(variant="em"), offered=dict.fromkeys(range(3), "s0.9"))
        assert {task.submodel for task in made.method.assign(made.server, made.plan())} == {"s0.9"}
        assert made.plan_costs.asked == []


class TestGradients:
    def test_clients_send_the_gradient_of_one_more_batch(self) -> None:
        made = group(quick(mutate_every=2), shards=[np.arange(24)], optimizer=SGD(lr=0.05, momentum=0.5))
        assert not any("slopes" in name for name in made.round()[0].weights), "nothing is due after the first round"
        task = made.method.assign(made.server, made.plan())[0]
        update = made.round()[0]
        assert update.steps == 4
        assert update.samples_seen == 24
        # The same by autograd: the weights that were sent, masked, on the batch that was held back.
        station = made.station(task.submodel)
        module = made.method.submodel(made.whole, task.submodel).module
        own = tensors_of(module)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(update.weights.get(name, task.weights[name]))
        stretches = [Stretch(program=station.step.prepared.keep_all(), steps=4)]  # type: ignore[attr-defined]
        client = LocalClient(station=station, split=made.split, shard=made.shards[0], stretches=stretches)
        *_, last = client.draws(task.work, task.seed)
        x, y = client.batch(last)
        with one_thread():
            F.cross_entropy(module(x), y).backward()
        for name, parameter in module.named_parameters():
            if name.endswith(".values"):
                assert parameter.grad is not None
                sent = update.weights[name.removesuffix("values") + "slopes"]
                # Read from a float32 weight that moved by lr times the gradient.
                torch.testing.assert_close(sent, parameter.grad.abs(), rtol=1e-2, atol=2e-5)

    def test_without_lambda_nothing_more_is_sent(self) -> None:
        made = group(quick(gradient_weight=0.0), shards=SHARDS[:1])
        update = made.round()[0]
        assert update.steps == 5
        assert set(update.weights) == {
            name for name in made.station("s0.85").tensors if not name.endswith((".places", ".patterns"))
        }


class TestForgetting:
    def test_the_least_forgotten_are_left_out_and_cost_no_steps(self) -> None:
        method = quick(drop_ratio=0.5, drop_round=2, gradient_weight=0.0)
        made = group(method, shards=[np.arange(40)], work=LocalWork(epochs=2, batch_size=8, lr=0.05))
        steps = []
        for _ in range(4):
            update = made.round()[0]
            steps.append(update.steps)
            assert update.num_samples == 40
        assert steps == [10, 10, 6, 6]  # 20 samples are three batches, twice
        state = made.states[0]
        assert len(state["samples_kept"]) == 20
        assert int(state["forgetting.times"].sum()) > 0
        assert made.server.extra["sparse.facts"].tolist()[0][2] == 20

    def test_it_works_for_dense_models_too(self) -> None:
        made = group(Mest(sparsity=0.0, drop_ratio=0.25, drop_round=1), model=small_model(), shards=[np.arange(32)])
        assert [made.round()[0].steps for _ in range(2)] == [4, 3]

    @pytest.mark.parametrize(
        ("told", "noted"), [(1e300, 10), (math.inf, 10), (1e15, 10), (7.0, 7), (-7.0, 0), (-1e300, 0), (math.nan, -1)]
    )
    def test_a_client_keeps_between_none_and_all_of_its_samples(self, told: float, noted: int) -> None:
        model = small_model()
        update = update_of(tensors_of(model), num_samples=10, metrics={"samples_kept": told})
        for drop_ratio in (0.25, 0.0):
            method = Mest(sparsity=0.0, drop_ratio=drop_ratio)
            after = method.aggregate(method.init(tensors_of(model)), [update])
            facts = ClientFacts.all_of(after.extra).get(0, ClientFacts())
            assert facts.samples_kept == (noted if drop_ratio else -1)

    def test_losses_are_those_of_the_plain_step(self) -> None:
        plain = group(quick(gradient_weight=0.0), shards=SHARDS[:1]).round()[0]
        watched = group(quick(gradient_weight=0.0, drop_ratio=0.5), shards=SHARDS[:1]).round()[0]
        assert plain.loss_mean == watched.loss_mean
        assert plain.squared_loss_sum == watched.squared_loss_sum
