"""Masks, mutations, their schedule, and forgetting: exact counts, fair draws, and what can be undone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fedhybrid.engine.runtime import one_thread
from fedhybrid.executor import SGD, TrainStep, prepare_step
from fedhybrid.methods.sparse import (
    History,
    Mask,
    Phase,
    Schedule,
    grown,
    initial_mask,
    mutated,
    never_seen,
    packed_bits,
    phases,
    random_mask,
    remembered,
    seen,
    started,
    survivors,
    unit_scores,
    unpacked_bits,
)
from fedhybrid.models.sparse import MARK, PATTERNS, SCHEMES, Layout, SparseLinear
from fedhybrid.tree import Tensors

SHAPE = (16, 12, 3, 3)


def weight_of(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_sound(layout: Layout, mask: Mask, sparsity: float) -> None:
    """The mask has exactly the units that it should have, each once, in order, equally many in each group."""
    numbers = layout.numbers(mask.places).long()
    assert len(numbers) == layout.kept(sparsity)
    assert bool((numbers.diff() > 0).all())
    assert int(numbers[0]) >= 0
    assert int(numbers[-1]) < layout.units
    assert mask.places.dtype == layout.place_dtype
    by_group = torch.bincount(numbers // (layout.units // layout.groups), minlength=layout.groups)
    assert len(by_group.unique()) == 1
    assert (mask.patterns is not None) == layout.has_patterns
    if mask.patterns is not None:
        assert len(mask.patterns) == len(numbers)
        assert int(mask.patterns.max()) < len(PATTERNS)


@pytest.mark.parametrize("scheme", SCHEMES)
class TestEveryScheme:
    @pytest.mark.parametrize("sparsity", [0.6, 0.75, 0.9, 0.98])
    def test_counts_are_exact(self, scheme: str, sparsity: float) -> None:
        layout = Layout(scheme=scheme, shape=SHAPE)
        assert_sound(layout, initial_mask(layout, weight_of(), sparsity), sparsity)
        assert_sound(layout, random_mask(layout, sparsity, 3), sparsity)

    def test_counts_are_exact_among_equals(self, scheme: str) -> None:
        """A threshold would keep all of them or none; the first are kept."""
        layout = Layout(scheme=scheme, shape=SHAPE)
        for weight in (torch.zeros(SHAPE), torch.ones(SHAPE)):
            mask = initial_mask(layout, weight, 0.9)
            assert_sound(layout, mask, 0.9)
            per_group = layout.kept(0.9) // layout.groups
            assert layout.numbers(mask.places)[:per_group].tolist() == list(range(per_group))

    def test_pruning_and_growing_change_as_many_as_they_should(self, scheme: str) -> None:
        layout, weight = Layout(scheme=scheme, shape=SHAPE), weight_of()
        mask = initial_mask(layout, weight, 0.75)
        stays = survivors(layout, unit_scores(layout.gathered(weight, *mask).abs()), 0.85)
        assert int(stays.sum()) == layout.kept(0.85)
        left = mask.only(stays)
        assert_sound(layout, left, 0.85)
        after = grown(layout, left, 0.75, 5)
        assert_sound(layout, after, 0.75)
        assert bool(torch.isin(left.places, after.places).all())
        assert_sound(layout, grown(layout, left, 0.75, 5, barred=mask.places[~stays]), 0.75)

    def test_the_same_seed_gives_the_same_mask(self, scheme: str) -> None:
        layout = Layout(scheme=scheme, shape=SHAPE)
        first, again, other = (random_mask(layout, 0.8, seed) for seed in (1, 1, 2))
        assert torch.equal(first.places, again.places)
        assert (first.patterns is None and again.patterns is None) or torch.equal(first.patterns, again.patterns)  # type: ignore[arg-type]
        assert not torch.equal(first.places, other.places)

    def test_the_largest_are_kept(self, scheme: str) -> None:
        layout, weight = Layout(scheme=scheme, shape=SHAPE), weight_of()
        kept = layout.gathered(weight, *initial_mask(layout, weight, 0.8)).abs().square().sum()
        others = [layout.gathered(weight, *random_mask(layout, 0.8, seed)).square().sum() for seed in range(5)]
        assert all(kept > 1.1 * other for other in others)


def test_irregular_masks_are_the_plain_top_k() -> None:
    layout, weight = Layout(scheme="irregular", shape=SHAPE), weight_of()
    expected = weight.abs().flatten().topk(layout.kept(0.9)).indices.sort().values
    assert torch.equal(layout.numbers(initial_mask(layout, weight, 0.9).places).long(), expected)


def test_each_kernel_keeps_its_best_pattern() -> None:
    layout, weight = Layout(scheme="pattern", shape=(2, 2, 3, 3)), weight_of(shape=(2, 2, 3, 3))
    mask = initial_mask(layout, weight, layout.least_sparsity)
    assert mask.patterns is not None
    for kernel, chosen in zip(weight.reshape(-1, 9), mask.patterns.tolist(), strict=True):
        norms = [float(kernel[list(pattern)].square().sum()) for pattern in PATTERNS]
        assert chosen == norms.index(max(norms))


class TestGrowth:
    def test_every_free_unit_is_as_likely(self) -> None:
        layout = Layout(scheme="irregular", shape=(4, 5))
        mask = Mask(torch.tensor([0, 1, 7, 18, 19], dtype=torch.int16))
        counts = torch.zeros(20)
        draws = 3000
        for seed in range(draws):
            after = grown(layout, mask, 0.6, seed)
            counts[after.places.long()] += 1
        free = torch.ones(20, dtype=torch.bool)
        free[mask.places.long()] = False
        assert counts[~free].tolist() == [draws] * 5
        expected = draws * 3 / 15
        assert float((counts[free] - expected).abs().max()) < 5 * math.sqrt(expected)

    def test_barred_units_wait_as_long_as_there_are_others(self) -> None:
        layout = Layout(scheme="irregular", shape=(4, 5))
        mask = Mask(torch.arange(4, dtype=torch.int16))
        barred = torch.arange(4, 10, dtype=torch.int16)
        for seed in range(50):
            assert not torch.isin(grown(layout, mask, 0.3, seed, barred=barred).places, barred).any()
        assert len(grown(layout, mask, 0.1, 0, barred=barred).places) == 18  # the others alone would not do

    def test_numbers_beyond_two_signed_bytes(self) -> None:
        layout = Layout(scheme="irregular", shape=(64, 64, 3, 3))
        assert_sound(layout, random_mask(layout, 0.9, 0), 0.9)
        weight = weight_of(shape=layout.shape)
        assert_sound(layout, grown(layout, initial_mask(layout, weight, 0.9), 0.85, 0), 0.85)


def test_bits_come_back() -> None:
    which = torch.rand(37, generator=torch.Generator().manual_seed(0)) < 0.5
    assert len(packed_bits(which)) == 5
    assert torch.equal(unpacked_bits(packed_bits(which), 37), which)


class TestSchedule:
    def test_phases(self) -> None:
        schedule = Schedule(phases=phases("em-s", 0.9, 0.05), starts=(90, 120), every=5)
        assert [schedule.phase_at(t).upper for t in (0, 89, 90, 119, 120, 500)] == [0.85, 0.85, 0.875, 0.875, 0.9, 0.9]
        assert [t for t in range(200) if schedule.is_due(t)] == list(range(0, 121, 5))

    def test_phases_change_with_the_mutation_that_makes_them(self) -> None:
        schedule = Schedule(phases=phases("em", 0.9, 0.02), starts=(7, 12), every=5)
        assert [schedule.phase_at(t).lower for t in (5, 7, 9, 10, 14, 15)] == [0.92, 0.92, 0.92, 0.91, 0.91, 0.9]
        assert [t for t in range(40) if schedule.is_due(t)] == [0, 5, 10, 15]

    def test_static_masks_are_never_due(self) -> None:
        schedule = Schedule(phases=phases("static", 0.9, 0.0), starts=(2, 4), every=1)
        assert not any(schedule.is_due(t) for t in range(10))


def model_tensors() -> tuple[Tensors, dict[str, Layout]]:
    weights = {"a.weight": weight_of(1), "a.bias": torch.ones(16), f"a.{MARK}": torch.tensor(1, dtype=torch.uint8)}
    return weights, {"a": Layout(scheme="irregular", shape=SHAPE)}


class TestMutations:
    @pytest.mark.parametrize("variant", ["em", "em-s"])
    def test_each_changes_its_part_and_the_last_nothing(self, variant: str) -> None:
        weights, layouts = model_tensors()
        n, ratio = layouts["a"].numel, 0.05 if variant == "em-s" else 0.02
        three = phases(variant, 0.9, ratio)
        weights, ledger = started(weights, layouts, sparsity=0.9, phase=three[0], at_random=False)
        for number, phase in enumerate((three[0], three[0], three[1], three[1], three[2], three[2])):
            before = set(ledger["a.places"].tolist())
            weights, ledger = mutated(weights, ledger, layouts, phase, bar_just_pruned=True)
            after = set(ledger["a.places"].tolist())
            assert len(after) == layouts["a"].kept(phase.upper)
            assert int(ledger["a.survivors"].sum()) == layouts["a"].kept(phase.lower)
            mu = (phase.lower - phase.upper) * n
            assert abs(len(after - before) - mu) <= 1
            if number in {1, 3}:  # the count is the same before and after
                assert abs(len(before - after) - mu) <= 1
            if number == 5:
                assert after == before
            active = torch.zeros(n, dtype=torch.bool)
            active[ledger["a.places"].long()] = True
            assert not weights["a.weight"].flatten()[~active].any()
            grown_ones = ledger["a.places"][~ledger["a.survivors"]].long()
            assert not weights["a.weight"].flatten()[grown_ones].any(), "what is grown begins with 0"

    def test_masks_follow_from_the_weights_that_a_run_begins_with(self) -> None:
        phase = Phase(lower=0.92, upper=0.9)

        def places(scale: float) -> torch.Tensor:
            weights, layouts = model_tensors()
            weights["a.weight"] *= scale  # the order by size stays
            return started(weights, layouts, sparsity=0.9, phase=phase, at_random=False)[1]["a.places"]

        assert torch.equal(places(1.0), places(1.0))
        assert not torch.equal(places(1.0), places(2.0))

    def test_importance_is_size_and_gradient(self) -> None:
        """A small weight with a large gradient stays where lambda says so."""
        weights, layouts = model_tensors()
        phase = Phase(lower=0.95, upper=0.95)
        weights, ledger = started(weights, layouts, sparsity=0.9, phase=Phase(lower=0.9, upper=0.9), at_random=False)
        values = layouts["a"].gathered(weights["a.weight"], ledger["a.places"])
        smallest = int(values.abs().flatten().argmin())
        slopes = {"a": torch.zeros_like(values)}
        slopes["a"][smallest] = 1000.0
        for gradient_weight, stays in ((0.0, False), (0.01, True)):
            _, after = mutated(weights, ledger, layouts, phase, slopes=slopes, gradient_weight=gradient_weight)
            assert (ledger["a.places"][smallest] in after["a.places"]) is stays


class TestUndo:
    """A weight that is useful but still small when masks change: EM prunes it, EM&S lets it train first."""

    INPUTS, USEFUL = 40, 11

    def survives(self, variant: str) -> bool:
        """Whether the useful weight is there, and large, after two mutations with training in between."""
        layout = Layout(scheme="irregular", shape=(1, self.INPUTS))
        sparsity, ratio = 0.5, 0.1
        phase = phases(variant, sparsity, ratio)[0]
        weight = torch.linspace(1.0, 2.0, self.INPUTS)[None].clone()
        weight[0, : self.INPUTS // 2 + 1] *= 1e-3  # 19 large ones are left
        weight[0, self.USEFUL] = 0.9  # the smallest of a mask of 20, and below the 16 to which EM prunes
        weights: Tensors = {"a.weight": weight}
        layouts = {"a": layout}
        weights, ledger = started(
            weights, layouts, sparsity=sparsity, phase=Phase(lower=0.5, upper=0.5), at_random=False
        )
        assert self.USEFUL in ledger["a.places"]
        weights, ledger = mutated(weights, ledger, layouts, phase, bar_just_pruned=True)
        weights = {"a.weight": self.trained(layout, weights["a.weight"], ledger["a.places"])}
        weights, ledger = mutated(weights, ledger, layouts, phase, bar_just_pruned=True)
        return abs(float(weights["a.weight"][0, self.USEFUL])) > 2.5

    def trained(self, layout: Layout, weight: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """After steps towards a target in which the useful input counts three times as much as others."""
        layer = SparseLinear(nn.Linear(self.INPUTS, 1, bias=False), layout, len(places))
        with torch.no_grad():
            layer.places.copy_(places)
            layer.values.copy_(layout.gathered(weight, places))
        generator = torch.Generator().manual_seed(0)
        target = torch.linspace(1.0, 2.0, self.INPUTS)
        target[: self.INPUTS // 2] = 0.0
        target[self.USEFUL] = 3.0
        x = torch.randn(64, self.INPUTS, generator=generator)
        y = x @ target[:, None]

        def loss(out: torch.Tensor, wanted: torch.Tensor) -> Any:
            return (out - wanted).square().mean()

        with one_thread():
            made = prepare_step(layer, loss, (x, y), SGD(lr=0.05), op_seconds=lambda work: 1e-6)
            step = TrainStep(made, made.keep_all())
            for _ in range(100):
                step(x, y)
        return layer.dense_weight().detach()

    def test_em_s_keeps_what_em_prunes(self) -> None:
        assert self.survives("em-s")
        assert not self.survives("em")


class TestForgetting:
    def test_right_then_wrong_is_forgotten(self) -> None:
        history = never_seen(4)
        everybody = torch.arange(4)
        for answers in ([1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]):
            history = seen(history, everybody, torch.tensor(answers).bool())
        assert history.times.tolist() == [2, 0, 1, 0]
        assert history.learned.tolist() == [True, True, True, False]

    def test_only_the_batch_is_touched(self) -> None:
        before = seen(never_seen(3), torch.tensor([0, 1]), torch.tensor([True, True]))
        after = seen(before, torch.tensor([1]), torch.tensor([False]))
        assert after.times.tolist() == [0, 1, 0]
        assert before.times.tolist() == [0, 0, 0]
        assert after.right.tolist() == [True, False, False]

    def test_the_least_forgotten_are_left_out_and_the_unlearned_never_first(self) -> None:
        ever = torch.tensor([True, True, True, True, False])
        history = History(torch.tensor([3, 0, 1, 0, 0], dtype=torch.int32), ever, ever)
        assert [remembered(history, n).tolist() for n in (0, 1, 2, 3, 4)] == [
            [0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 2, 4], [0, 4], [4],
        ]  # fmt: skip

    def test_a_client_keeps_its_history(self) -> None:
        history = seen(never_seen(3), torch.tensor([2]), torch.tensor([True]))
        again = History.of_state(history.as_state() | {"other": torch.ones(1)}, 3)
        assert all(torch.equal(a, b) for a, b in zip(again, history, strict=True))
        assert not History.of_state({}, 3).learned.any()
