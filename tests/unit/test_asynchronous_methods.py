"""FedAsync and FedBuff: their papers' formulas on numbers that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import pytest
import torch
from tests.federation_parts import SHARDS, shop
from tests.scene_parts import same_tensors, small_task, update_of

from fedhybrid.engine.runtime import Stretch
from fedhybrid.errors import ConfigError
from fedhybrid.methods import METHODS, FedAsync, FedBuff
from fedhybrid.protocols import ServerState
from fedhybrid.records import Update
from fedhybrid.tree import Tensors


def updates_of(*values: tuple[Tensors, int, int]) -> list[Update]:
    """Updates of (weights, samples, version that it began with)."""
    return [
        update_of(weights, client=client, num_samples=samples, round_index=began)
        for client, (weights, samples, began) in enumerate(values)
    ]


def server_of(weights: Tensors) -> ServerState:
    return ServerState(weights=weights, version=10)


def test_they_are_for_any_age_and_only_fedbuff_sends_differences() -> None:
    assert {name for name, cls in METHODS.items() if cls().asynchronous} >= {"fedasync", "fedbuff"}
    assert not METHODS["fedavg"]().asynchronous
    assert METHODS["fedbuff"]().differences
    assert not METHODS["fedasync"]().differences


class TestFedAsync:
    START: ClassVar[Tensors] = {"p": torch.tensor([2.0]), "count": torch.tensor(10)}
    NEW: ClassVar[Tensors] = {"p": torch.tensor([10.0]), "count": torch.tensor(20)}

    @pytest.mark.parametrize("staleness", [0, 1, 3, 8])
    @pytest.mark.parametrize(
        ("options", "weight"),
        [
            ({"staleness": "polynomial", "exponent": 0.5}, lambda age: (age + 1) ** -0.5),
            ({"staleness": "constant"}, lambda age: 1.0),
            (
                {"staleness": "hinge", "exponent": 10.0, "grace": 2},
                lambda age: 1 if age <= 2 else 1 / (10 * (age - 2) + 1),
            ),
        ],
    )
    def test_formula(self, staleness: int, options: dict[str, Any], weight: Any) -> None:
        method = METHODS["fedasync"](mixing=0.6, **options)
        (update,) = updates_of((self.NEW, 5, 10 - staleness))
        after = method.aggregate(server_of(self.START), [update]).weights
        a = 0.6 * weight(staleness)
        assert after["p"].item() == pytest.approx((1 - a) * 2 + a * 10, rel=1e-6)
        assert after["count"].item() == round((1 - a) * 10 + a * 20)

    def test_several_are_mixed_in_one_after_the_other(self) -> None:
        method = METHODS["fedasync"](mixing=0.5, staleness="constant")
        updates = updates_of((self.NEW, 5, 10), ({"p": torch.tensor([0.0])}, 5, 3))
        assert method.aggregate(server_of(self.START), updates).weights["p"].item() == 3.0  # 2 -> 6 -> 3

    def test_samples_do_not_count(self) -> None:
        method = METHODS["fedasync"]()
        few, many = (method.aggregate(server_of(self.START), updates_of((self.NEW, n, 9))).weights for n in (1, 999))
        assert same_tensors(few, many)

    def test_options_are_checked_together(self) -> None:
        with pytest.raises(ConfigError) as caught:
            METHODS["fedasync"](mixing=0.0, staleness="linear", exponent=-1.0, grace=-1, mu=math.nan)
        assert len(caught.value.problems) == 5


class TestFedBuff:
    START: ClassVar[Tensors] = {"p": torch.tensor([2.0, 2.0]), "count": torch.tensor(10)}

    def test_equal_ages_are_the_mean_of_the_models(self) -> None:
        models = [{"p": torch.tensor([v, -v]), "count": torch.tensor(10 + n)} for n, v in enumerate((1.0, 4.0, 7.0))]
        sent = [{name: model[name] - self.START[name] for name in model} for model in models]
        after = METHODS["fedbuff"]().aggregate(server_of(self.START), updates_of(*((each, 9, 10) for each in sent)))
        assert after.weights["p"].tolist() == [4.0, -4.0]
        assert (after.weights["count"].item(), after.weights["count"].dtype) == (11, torch.int64)

    @pytest.mark.parametrize("scaled", [True, False])
    def test_stale_ones_count_less_and_the_sum_is_over_their_number(self, scaled: bool) -> None:
        ages, steps = (0, 3, 8), (6.0, 3.0, 9.0)
        updates = updates_of(*(({"p": torch.tensor([s, s])}, 1, 10 - age) for age, s in zip(ages, steps, strict=True)))
        after = METHODS["fedbuff"](server_lr=0.5, scaled=scaled).aggregate(server_of(self.START), updates).weights
        scales = [1 / math.sqrt(1 + age) if scaled else 1.0 for age in ages]
        expected = 2 + 0.5 * sum(a * s for a, s in zip(scales, steps, strict=True)) / 3
        assert after["p"].tolist() == pytest.approx([expected] * 2, rel=1e-6)
        assert after["count"].item() == 10

    def test_clients_send_what_they_have_changed(self) -> None:
        task, stretches = small_task(0), [Stretch(program=shop().prepared.keep_all(), steps=5)]
        models, changes = (
            shop().bench.run(METHODS[name](), task, SHARDS[0], stretches, {}).weights for name in ("fedavg", "fedbuff")
        )
        assert same_tensors(changes, {name: tensor - task.weights[name] for name, tensor in models.items()})

    def test_options_are_checked(self) -> None:
        with pytest.raises(ConfigError, match="server_lr must be a positive number, got 0"):
            METHODS["fedbuff"](server_lr=0.0)


def test_updates_of_one_aggregation_are_mixed_in_the_order_of_arrival() -> None:
    """Who is mixed in last counts most, and that must not be a matter of client numbers."""
    method = FedAsync(mixing=0.5, staleness="constant")
    server = ServerState(weights={"w": torch.zeros(1)})
    arrived = [update_of({"w": torch.full((1,), value)}, client=client) for client, value in ((4, 1.0), (0, 3.0))]
    assert float(method.aggregate(server, arrived).weights["w"]) == 0.5 * 0.5 * 1.0 + 0.5 * 3.0
    assert float(method.aggregate(server, arrived[::-1]).weights["w"]) == 0.5 * 0.5 * 3.0 + 0.5 * 1.0


def test_what_is_not_sent_has_not_changed() -> None:
    """FedBuff divides by the number of updates, also where some hold nothing of an element."""
    server = ServerState(weights={"w": torch.zeros(2), "v": torch.zeros(1)})
    mask = {"w": torch.tensor([True, False])}
    whole = update_of({"w": torch.tensor([2.0, 2.0]), "v": torch.ones(1)}, client=0)
    part = dataclasses.replace(update_of({"w": torch.tensor([4.0, 9.0])}, client=1), masks=mask)
    after = FedBuff().aggregate(server, [whole, part]).weights
    assert after["w"].tolist() == [3.0, 1.0]
    assert after["v"].tolist() == [0.5]


def test_buffers_are_mixed_and_never_overshoot() -> None:
    server = ServerState(weights={"var": torch.ones(1)}, version=3, buffers=frozenset({"var"}))
    stale = dataclasses.replace(update_of({"var": torch.full((1,), 0.1)}, client=0), round_index=0)
    after = FedBuff(server_lr=1.0).aggregate(server, [stale]).weights["var"]
    assert float(after) == pytest.approx(0.5 * 1.0 + 0.5 * 0.1)
    bold = FedBuff(server_lr=10.0).aggregate(server, [stale]).weights["var"]
    assert float(bold) == pytest.approx(0.1)
