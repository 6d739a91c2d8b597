"""DIVISION and Mesa as their papers have them: every eligible tensor of a step is packed, and training goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.step_parts import OPTIMIZERS, cross_entropy, image_batch, small_model
from torch import Tensor, nn

import fedhybrid as fh
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.models import build_model
from fedhybrid.planner import Plan

Gradients = dict[str, Tensor]


def conv_net() -> nn.Sequential:
    """Everything that DIVISION keeps exact: what convolutions, ReLU, pooling and dropout hand back."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16 * 256, 10),
    )  # fmt: skip


def prepare(model: nn.Module, batch: int = 8, side: int = 32) -> PreparedStep:
    return prepare_step(model, cross_entropy, image_batch(batch, side=side), OPTIMIZERS["sgd"])


def gradients(step: TrainStep, seed: int = 0) -> Gradients:
    step.reset_codecs(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)  # of dropout
        return step.gradients()


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def shrink_of(prepared: PreparedStep, plan: Plan, codec: str) -> float:
    """Bytes of what a codec packs, over those of its codes."""
    chosen = {d.storage: d.nbytes for d in plan.decisions if d.action == f"encode:{codec}"}
    packed = {s: prepared.packable.whole[s] for s in chosen}
    codes = sum(prepared.packable.codec(s, codec).encoded_bytes(v.shape, v.dtype) for s, v in packed.items())
    return sum(chosen.values()) / codes


@pytest.fixture(scope="module")
def steps() -> tuple[Gradients, TrainStep]:
    """Exact gradients of the convolutional network, and its step with everything packed by DIVISION."""
    prepared = prepare(conv_net())
    exact = gradients(TrainStep(prepared, prepared.keep_all()))
    return exact, TrainStep(prepared, prepared.packed_whole("division"))


@pytest.fixture(scope="module")
def transformer() -> PreparedStep:
    options = {"dim": 48, "depth": 2, "heads": 3}
    return prepare(build_model("vit", input_shape=(3, 32, 32), classes=10, seed=0, options=options), batch=16)


@pytest.fixture(scope="module", params=["division", "mesa", "channel-mix"])
def step(request: Any) -> TrainStep:
    prepared = prepare(small_model("resnet20"))
    return TrainStep(prepared, prepared.packed_whole(request.param))


class TestDivision:
    def test_only_gradients_of_weights_are_noisy(self, steps: tuple[Gradients, TrainStep]) -> None:
        exact, step = steps
        found = gradients(step)
        actions = {d.action for d in step.plan.decisions}
        assert {"encode:division", "encode:bits", "encode:narrow"} <= actions
        for name in ("0.bias", "3.bias", "7.bias", "7.weight"):
            assert relative(found[name], exact[name]) < 1e-5, name
        assert relative(found["3.weight"], exact["3.weight"]) > 0.01

    def test_noise_has_no_bias(self, steps: tuple[Gradients, TrainStep]) -> None:
        exact, step = steps
        draws = [gradients(step, seed)["3.weight"] for seed in range(32)]
        one = sum(relative(draw, exact["3.weight"]) for draw in draws) / len(draws)
        mean = relative(torch.stack(draws).mean(0), exact["3.weight"])
        assert one / 12 < mean < one / 3.5  # one over the square root of 32 is 1 / 5.7

    def test_maps_shrink_as_the_paper_says(self) -> None:
        model = build_model("resnet20", input_shape=(3, 32, 32), classes=10, seed=0, options={"width": 0.5})
        prepared = prepare(model, batch=64)
        plan = prepared.packed_whole("division")
        assert shrink_of(prepared, plan, "division") >= 8
        assert TrainStep(prepared, plan).measured_peak_bytes() == plan.peak_bytes
        assert plan.gradient_error is None
        assert not plan.bit_identical


class TestMesa:
    def test_every_gradient_points_where_it_did(self, transformer: PreparedStep) -> None:
        exact = gradients(TrainStep(transformer, transformer.keep_all()))
        found = gradients(TrainStep(transformer, transformer.packed_whole("mesa")))
        for name, grad in found.items():
            assert float(nn.functional.cosine_similarity(grad.flatten(), exact[name].flatten(), dim=0)) > 0.999, name

    def test_activations_shrink_to_a_quarter(self, transformer: PreparedStep) -> None:
        plan = transformer.packed_whole("mesa")
        assert shrink_of(transformer, plan, "mesa") >= 3.5
        assert TrainStep(transformer, plan).measured_peak_bytes() == plan.peak_bytes

    def test_a_batch_of_twice_the_range_stays_finite(self, transformer: PreparedStep) -> None:
        step = TrainStep(transformer, transformer.packed_whole("mesa"))
        x, y = transformer.example
        with step.preserved():
            assert torch.isfinite(step(x, y))
            assert torch.isfinite(step(2 * x, y))
            assert all(torch.isfinite(p).all() for p in transformer.model.parameters())


class TestState:
    def test_equal_seeds_give_equal_gradients_and_others_do_not(self, step: TrainStep) -> None:
        one, again, other = (gradients(step, seed) for seed in (5, 5, 6))
        assert all(torch.equal(one[name], again[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)

    def test_steps_draw_different_numbers_and_measuring_none(self, step: TrainStep) -> None:
        step.reset_codecs(1)
        with step.preserved():
            first = step.run_example().clone()
            after_one = {n: p.detach().clone() for n, p in step.prepared.model.named_parameters()}
        step.measure(repeats=1)
        with step.preserved():
            assert torch.equal(step.run_example(), first)
            found = dict(step.prepared.model.named_parameters())
            assert all(torch.equal(found[name], after_one[name]) for name in found)

    def test_nothing_of_it_is_in_the_models_state(self, step: TrainStep) -> None:
        keys = set(step.prepared.model.state_dict())
        with step.preserved():
            step.run_example()
        assert set(step.prepared.model.state_dict()) == keys == set(small_model("resnet20").state_dict())


def test_an_unknown_codec_is_refused() -> None:
    prepared = prepare(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
    with pytest.raises(fh.ConfigError, match="unknown lossy codec 'zip'"):
        prepared.packed_whole("zip")
