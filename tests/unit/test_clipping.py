"""Clipping by the norm of all gradients: the bits of `torch.nn.utils.clip_grad_norm_`, and its bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.step_parts import (
    OPTIMIZERS,
    assert_plan_holds,
    assert_same_bits,
    cross_entropy,
    eager_training,
    image_batch,
    planned_training,
    small_model,
)
from torch import Tensor, nn

import fedhybrid as fh
from fedhybrid.executor import TrainStep, prepare_step

CLIP = 0.5  # below the norm of the first steps of every model here


def batches(count: int = 5) -> list[Any]:
    return [image_batch(seed=seed) for seed in range(count)]


@pytest.mark.parametrize(("name", "optimizer"), [("resnet20", "sgd-nesterov-decay"), ("vit", "adam"), ("cnn", "adamw")])
def test_clipped_training_equals_eager_bit_for_bit(name: str, optimizer: str) -> None:
    model, rule = small_model(name), OPTIMIZERS[optimizer]
    expected = eager_training(model, cross_entropy, batches(), rule, clip_norm=CLIP)
    unclipped = eager_training(model, cross_entropy, batches(), rule)
    prepared = prepare_step(model, cross_entropy, batches()[0], rule, clip_norm=CLIP)
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_plan_holds(step)
    losses = planned_training(step, batches())
    assert_same_bits(step, losses, expected)
    assert not torch.equal(losses[-1], unclipped[2][-1]), "nothing was clipped, so nothing was tested"


def test_the_plan_knows_that_gradients_wait_for_each_other() -> None:
    model, rule = small_model("resnet18"), OPTIMIZERS["sgd"]
    prepared = prepare_step(model, cross_entropy, image_batch(8), rule, clip_norm=CLIP)
    gradients = sum(p.nbytes for p in model.parameters())
    plan = prepared.plan("80%")
    assert plan.peak_bytes >= prepared.resident_bytes + gradients
    step = TrainStep(prepared, plan)
    assert_plan_holds(step, plan.budget_bytes)
    planned_training(step, [image_batch(8)])
    measured = step.measure(repeats=1)
    assert measured.bit_identical
    assert measured.gradient_error == 0.0
    assert measured.eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=1024, rel=1e-3)


class Awkward(nn.Module):
    """Gradients that share memory, that are expanded, and that lie in memory otherwise than their parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(48, 32)), nn.Parameter(torch.randn(48, 32))
        self.turned = nn.Parameter(torch.randn(32, 10))
        self.shift = nn.Parameter(torch.randn(6, 10))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.flatten(1) @ (self.p + self.q)
        return hidden @ self.turned.t().contiguous().t() + self.shift


def test_gradients_that_cannot_be_scaled_in_place() -> None:
    def loss_fn(scores: Tensor, y: Tensor) -> Tensor:
        return scores.sum() * 0.01

    examples = [image_batch(6, side=4, seed=seed) for seed in range(3)]
    model = Awkward()
    expected = eager_training(model, loss_fn, examples, OPTIMIZERS["adam"], clip_norm=CLIP)
    prepared = prepare_step(model, loss_fn, examples[0], OPTIMIZERS["adam"], clip_norm=CLIP)
    assert any(not update.owned for update in prepared.updates)
    step = TrainStep(prepared, prepared.keep_all())
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, examples), expected)
    assert step.measure(repeats=1).eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=1024, rel=1e-3)


def test_a_large_norm_changes_no_bit() -> None:
    model = small_model("cnn")
    expected = eager_training(model, cross_entropy, batches(2), OPTIMIZERS["adamw"])
    step = fh.compile_step(model, cross_entropy, batches()[0], optimizer=OPTIMIZERS["adamw"], clip_norm=1e6)
    assert_same_bits(step, planned_training(step, batches(2)), expected)


def test_a_plan_without_clipping_does_not_fit() -> None:
    model = small_model("cnn")
    plan = fh.plan_step(model, cross_entropy, batches()[0], optimizer=OPTIMIZERS["sgd"], budget="200%")
    with pytest.raises(fh.PlanMismatchError):
        fh.compile_step(model, cross_entropy, batches()[0], optimizer=OPTIMIZERS["sgd"], clip_norm=CLIP, plan=plan)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan"), "1"])
def test_a_norm_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(fh.ConfigError, match="clip_norm must be a positive finite number"):
        fh.compile_step(small_model("cnn"), cross_entropy, batches()[0], optimizer=OPTIMIZERS["sgd"], clip_norm=wrong)
