"""What goes over the links: exact bytes both ways, one packing of a model for everybody, state of the clients alone."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from hypothesis import given, settings
from tests.federation_parts import shop
from tests.scene_parts import same_tensors, small_task, update_of
from tests.update_parts import chain, updates

from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors, total_bytes
from fedhybrid.updates import STATE_PREFIX, Pipeline

FEEDBACK = chain("delta", "error-feedback", "top-k")
ROUNDED = chain("quantise")


def traffic(*, down: Pipeline | None = None, up: Pipeline | None = None, differences: bool = False) -> Traffic:
    return Traffic(down=down or Pipeline(), up=up or Pipeline(), differences=differences, run_seed=4)


def moved(by: float) -> Tensors:
    generator = torch.Generator().manual_seed(int(by * 1000))
    return {
        name: t + by * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for name, t in shop().weights.items()
    }


class Dictionary(dict[str, torch.Tensor]):
    """One whose end can be seen."""


class TestDown:
    def test_as_it_is_where_nothing_changes_it(self) -> None:
        weights, num_bytes = traffic().sent_down(shop().weights, version=3)
        assert weights is shop().weights
        assert num_bytes == total_bytes(weights)

    def test_one_model_is_packed_once_for_everybody(self) -> None:
        links = traffic(down=ROUNDED)
        first, num_bytes = links.sent_down(shop().weights, version=3)
        again, _ = links.sent_down(shop().weights, version=3)
        assert again is first
        assert num_bytes == links.expected_bytes(shop().weights)[0] < total_bytes(shop().weights) / 3
        assert not same_tensors(first, shop().weights)

    def test_another_that_is_told_the_same_gives_the_same(self) -> None:
        one, other = (traffic(down=ROUNDED).sent_down(shop().weights, version=3)[0] for _ in range(2))
        assert same_tensors(one, other)

    def test_what_is_random_is_new_for_each_version(self) -> None:
        one, other = (traffic(down=ROUNDED).sent_down(shop().weights, version=v)[0] for v in (3, 4))
        assert not same_tensors(one, other)

    def test_forgets_old_models_and_never_confuses_two(self) -> None:
        links = traffic(down=ROUNDED)
        models = [moved(number / 10) for number in range(30)]
        expected = [traffic(down=ROUNDED).sent_down(model, version=n)[0] for n, model in enumerate(models)]
        alive = []
        for number, model in enumerate(models):  # in dictionaries that nobody else keeps
            own = Dictionary(model)
            found, _ = links.sent_down(own, version=number)
            assert same_tensors(found, expected[number])
            alive.append(weakref.ref(own))
            del own
        # What is known by its identity must live as long as it is known.
        assert [number for number, each in enumerate(alive) if each() is not None] == list(range(22, 30))
        assert len(links._sent) <= 8

    def test_a_task_without_a_model_costs_nothing(self) -> None:
        assert traffic(down=ROUNDED).sent_down({}, version=0) == ({}, 0)


class TestUp:
    @settings(max_examples=60)
    @given(sent=updates())
    def test_bytes_of_tensors_as_they_are(self, sent: tuple[Tensors, Tensors, Tensors]) -> None:
        reference, values, masks = sent
        links, task = traffic(), small_task(0, weights=reference)
        delivery = links.packed(update_of(values, masks), task, {})
        assert delivery.payload is None
        assert links.unpacked(delivery, task) is delivery.update
        most = total_bytes(values)
        if not masks:
            assert links.bytes_up(delivery) == most
        elements = sum(
            (int(masks[name].sum()) if name in masks else tensor.numel()) * tensor.element_size()
            for name, tensor in values.items()
        )
        # A mask takes at most a bit an element and a length; one that is True everywhere says nothing.
        assert elements <= links.bytes_up(delivery) <= elements + sum(8 + -(-m.numel() // 8) for m in masks.values())

    def test_bytes_of_figures(self) -> None:
        delivery = Delivery(update=update_of({}, metrics={"accuracy": 0.5, "other": 1.0}))
        assert traffic(up=FEEDBACK).bytes_up(delivery) == 16

    def test_figures_pass_every_pipeline(self) -> None:
        update = update_of({}, metrics={"accuracy": 0.5})
        delivery = traffic(up=FEEDBACK).packed(update, small_task(0), {})
        assert delivery.update is update
        assert delivery.payload is None

    @settings(max_examples=40)
    @given(sent=updates())
    def test_what_is_packed_is_read_again(self, sent: tuple[Tensors, Tensors, Tensors]) -> None:
        reference, values, masks = sent
        links, task = traffic(up=ROUNDED), small_task(0, weights=reference)
        delivery = links.packed(update_of(values, masks), task, {})
        assert delivery.payload is not None
        assert (delivery.update.weights, delivery.update.masks) == ({}, {})
        assert links.bytes_up(delivery) == len(delivery.payload)
        read = links.unpacked(delivery, task)
        assert read.weights.keys() == values.keys()
        assert {n for n, m in masks.items() if not m.all()} <= read.masks.keys() <= masks.keys()

    def test_whole_updates_are_foretold_to_the_byte(self) -> None:
        for up in (Pipeline(), FEEDBACK, ROUNDED, chain("delta", "top-k", "quantise")):
            links = traffic(up=up)
            delivery = links.packed(update_of(moved(0.1)), small_task(0), {})
            assert links.bytes_up(delivery) == links.expected_bytes(shop().weights)[1]

    @pytest.mark.parametrize("damage", ["cut", "other", "empty"])
    def test_damaged_payload_is_refused(self, damage: str) -> None:
        links = traffic(up=FEEDBACK)
        delivery = links.packed(update_of(moved(0.1)), small_task(0), {})
        assert delivery.payload is not None
        payload = {"cut": delivery.payload[:-3], "other": delivery.payload[:-1] + b"?", "empty": b""}[damage]
        with pytest.raises(ConfigError):
            links.unpacked(dataclasses.replace(delivery, payload=payload), small_task(0))


class TestState:
    def test_the_pipelines_own_stands_beside_the_methods(self) -> None:
        links, task = traffic(up=FEEDBACK), small_task(0)
        mine: Tensors = {"mine": torch.tensor(3)}
        kept = links.packed(update_of(moved(0.1), state=mine), task, {}).update.state
        assert kept is not None
        assert kept["mine"] is mine["mine"]
        assert {name for name in kept if name.startswith(STATE_PREFIX)} == kept.keys() - {"mine"}
        assert len(kept) > 1

    def test_a_method_that_keeps_what_it_had_says_nothing(self) -> None:
        links, task = traffic(up=FEEDBACK), small_task(0)
        before: Tensors = {"mine": torch.tensor(3)}
        kept = links.packed(update_of(moved(0.1)), task, before).update.state
        assert kept is not None
        assert kept["mine"] is before["mine"]

    def test_without_memory_it_is_the_methods_alone(self) -> None:
        for up in (Pipeline(), ROUNDED):
            links = traffic(up=up)
            assert links.packed(update_of(moved(0.1)), small_task(0), {"mine": torch.tensor(1)}).update.state is None
            delivery = links.packed(update_of(moved(0.1), state={}), small_task(0), {"mine": torch.tensor(1)})
            assert delivery.update.state == {}

    def test_what_was_lost_is_sent_later(self) -> None:
        """With error feedback, equal updates add up to what they are; without it the small ones are never sent."""
        target = moved(0.1)
        ended = {}
        for name, up in (("feedback", FEEDBACK), ("plain", chain("delta", "top-k"))):
            links, state = traffic(up=up), {}
            total = {n: torch.zeros_like(t) for n, t in target.items() if t.is_floating_point()}
            for seed in range(30):
                delivery = links.packed(update_of(target), small_task(0, seed=seed), state)
                state = delivery.update.state or {}
                read = links.unpacked(delivery, small_task(0)).weights
                for n in total:
                    total[n] += read[n] - shop().weights[n]
            wanted = {n: 30 * (target[n] - shop().weights[n]) for n in total}
            off = sum(float((total[n] - wanted[n]).square().sum()) for n in total)
            ended[name] = off / sum(float(t.square().sum()) for t in wanted.values())
        assert ended["feedback"] < 0.05
        assert ended["plain"] > 0.2


class TestDifferences:
    def test_are_taken_as_they_are(self) -> None:
        """A method that sends differences has nothing taken off them again."""
        difference = {n: t - shop().weights[n] for n, t in moved(0.1).items()}
        links = traffic(up=chain("delta", "top-k", top_k={"ratio": 0.25}), differences=True)
        delivery = links.packed(update_of(difference), small_task(0), {})
        read = links.unpacked(delivery, small_task(0)).weights
        for name, tensor in read.items():
            if tensor.is_floating_point():
                there = tensor != 0
                assert torch.equal(tensor[there], difference[name][there])
                assert 0 < int(there.sum()) <= -(-tensor.numel() // 4)
