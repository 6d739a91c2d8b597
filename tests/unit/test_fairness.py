"""Accuracy on data like each client's own: by the mix of its classes, or on its own people's test samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.federation_parts import DEVICES, shop

from fedhybrid.data import Dataset, DealtShards, ImageSplit, load_dataset
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.engine.fairness import fairness_of, own_accuracies
from fedhybrid.fleet import Fleet, Tier
from fedhybrid.records import IntArray
from fedhybrid.tree import Tensors
from fedhybrid.units import parse_budget


def split(labels: list[int]) -> ImageSplit:
    count = len(labels)
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    return ImageSplit(images=images, labels=torch.tensor(labels), mean=(0.5,), std=(0.5,))


def data(
    train: list[int], test: list[int], natural: list[int] | None = None, tested: list[int] | None = None
) -> Dataset:
    return Dataset(
        name="made up",
        train=split(train),
        test=split(test),
        classes=3,
        natural_ids=None if natural is None else np.array(natural),
        test_ids=None if tested is None else np.array(tested),
    )


def clients(count: int) -> IntArray:
    return np.arange(count, dtype=np.int64)


class TestByClassMix:
    # Of class 0 half are right, of class 1 all, of class 2 none.
    DATA = data(train=[0, 0, 1, 1, 2, 0], test=[0, 0, 1, 2, 2])
    RIGHT = np.array([True, False, True, False, False])

    def test_each_class_weighs_as_the_client_holds_it(self) -> None:
        shards = DealtShards.of([np.array([0, 1]), np.array([0, 2, 3, 4]), np.array([4]), np.array([], dtype=int)])
        found = own_accuracies(self.RIGHT, self.DATA, shards, clients(4), natural=False)
        assert found[:3].tolist() == [0.5, (0.5 + 1 + 1 + 0) / 4, 0.0]
        assert math.isnan(found[3])

    def test_only_those_asked_for(self) -> None:
        shards = DealtShards.of([np.array([0]), np.array([2]), np.array([4])])
        assert own_accuracies(self.RIGHT, self.DATA, shards, np.array([2, 1]), natural=False).tolist() == [0.0, 1.0]

    def test_a_class_that_is_not_tested_is_left_out(self) -> None:
        shards = DealtShards.of([np.array([0, 1])])
        dataset = data(train=[0, 2], test=[0, 1])
        assert own_accuracies(np.array([True, True]), dataset, shards, clients(1), natural=False).tolist() == [1.0]
        nothing = own_accuracies(np.array([True]), data(train=[2], test=[0]), DealtShards.of([np.array([0])]),
                                 clients(1), natural=False)  # fmt: skip
        assert math.isnan(nothing[0])

    def test_people_are_not_looked_at_unless_clients_are_people(self) -> None:
        dataset = data([0, 1], [0, 1], natural=[5, 6], tested=[6, 5])
        shards = DealtShards.of([np.array([0]), np.array([1])])
        right = np.array([True, False])
        assert own_accuracies(right, dataset, shards, clients(2), natural=False).tolist() == [1.0, 0.0]
        assert own_accuracies(right, dataset, shards, clients(2), natural=True).tolist() == [0.0, 1.0]


class TestByPeople:
    def test_each_on_its_own_test_samples(self) -> None:
        dataset = data([0] * 5, [0] * 6, natural=[3, 3, 8, 9, 9], tested=[3, 3, 8, 8, 8, 12])
        right = np.array([True, False, True, True, False, True])
        shards = DealtShards.of([np.array([0, 1]), np.array([2]), np.array([3, 4])])
        found = own_accuracies(right, dataset, shards, clients(3), natural=True)
        assert found[:2].tolist() == [0.5, 2 / 3]
        assert math.isnan(found[2])  # nobody has tested 9

    def test_several_people_of_one_client_weigh_by_their_samples(self) -> None:
        dataset = data([0] * 2, [0] * 4, natural=[1, 2], tested=[1, 2, 2, 2])
        shards = DealtShards.of([np.array([0, 1])])
        right = np.array([True, False, False, True])
        assert own_accuracies(right, dataset, shards, clients(1), natural=True).tolist() == [0.5]

    def test_where_the_data_do_not_say_classes_do(self) -> None:
        shards = DealtShards.of([np.array([0])])
        dataset = data([0], [0, 1], natural=[4])
        assert own_accuracies(np.array([True, False]), dataset, shards, clients(1), natural=True).tolist() == [1.0]


class TestFigures:
    def fleet(self, tier: list[int]) -> Fleet:
        kinds = tuple(
            Tier(name=name, budget=parse_budget("100%"), device=DEVICES["laptop"], clients=tier.count(number))
            for number, name in enumerate(("weak", "strong", "nobody's"))
        )
        return Fleet(tier=np.array(tier, dtype=np.int16), tiers=kinds)

    def constant(self, answer: int) -> Tensors:
        """The narrow network, with an answer that does not depend on the picture."""
        weights = {name: tensor.clone() for name, tensor in shop().weights.items()}
        weights["head.weight"].zero_()
        weights["head.bias"].zero_()[answer] = 1.0
        return weights

    def test_by_tier_and_worst_tenth(self) -> None:
        digits = load_dataset("digits")
        labels = digits.train.labels.numpy()
        by_class = [np.flatnonzero(labels == digit)[:6] for digit in range(10)]
        # Client i holds digit i mod 10; client 10 holds threes and fours; client 11 nothing.
        shards = DealtShards.of([*by_class, np.concatenate([by_class[3], by_class[4]]), np.array([], dtype=int)])
        fleet = self.fleet([0] * 5 + [1] * 5 + [0, 0])
        found = fairness_of(
            self.constant(3), Evaluator(shop().bench.model, digits.test), digits, shards, fleet, natural=False, seed=0
        )
        assert found.clients == 11
        assert found.by_tier == {"weak": pytest.approx((1 + 0.5) / 6), "strong": 0.0, "nobody's": None}
        assert found.worst_tenth == 0.0

    def test_worst_tenth_is_at_least_one_client(self) -> None:
        digits = load_dataset("digits")
        threes = np.flatnonzero(digits.train.labels.numpy() == 3)
        shards = DealtShards.of([threes[:4], threes[4:9]])
        found = fairness_of(
            self.constant(3),
            Evaluator(shop().bench.model, digits.test),
            digits,
            shards,
            self.fleet([0, 0]),
            natural=False,
            seed=0,
        )
        assert (found.clients, found.worst_tenth) == (2, 1.0)

    def test_a_large_fleet_is_sampled_the_same_way_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedhybrid.engine.fairness._MOST_CLIENTS", 8)
        digits = load_dataset("digits")
        shards = DealtShards.of(np.array_split(np.arange(200), 40))
        fleet = self.fleet([0] * 20 + [1] * 20)

        def figures(seed: int) -> object:
            evaluator = Evaluator(shop().bench.model, digits.test)
            return fairness_of(self.constant(3), evaluator, digits, shards, fleet, natural=False, seed=seed)

        assert figures(0) == figures(0)
        assert figures(0) != figures(1)
