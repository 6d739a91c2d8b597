"""The published sizes: exact bytes and equal bits at batch 32, 32x32, as the README claims."""

from __future__ import annotations

import pytest
from tests.step_parts import (
    OPTIMIZERS,
    assert_plan_holds,
    assert_same_bits,
    cross_entropy,
    eager_training,
    image_batch,
    planned_training,
)

import fedhybrid as fh
from fedhybrid.executor import TrainStep, prepare_step
from fedhybrid.models import build_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
FULL = ("cnn", "resnet18", "mobilenet_v2", "vit")
SMALLEST_SHARE = {"cnn": 100, "resnet18": 40, "mobilenet_v2": 20, "vit": 10}  # budgets that must be feasible


@pytest.mark.parametrize("name", FULL)
def test_bytes_at_every_budget(name: str) -> None:
    model = build_model(name, input_shape=(3, 32, 32), classes=10, seed=0, options={})
    prepared = prepare_step(model, cross_entropy, image_batch(32, 32), OPTIMIZERS["sgd"])
    step = TrainStep(prepared, prepared.keep_all())
    assert_plan_holds(step)
    for share in (80, 60, 40, 30, 20, 10):
        try:
            step.use_plan(prepared.plan(f"{share}%"))
        except fh.InfeasibleBudgetError:
            assert share < SMALLEST_SHARE[name]
            continue
        assert_plan_holds(step, step.plan.budget_bytes)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("name", FULL)
def test_twenty_steps(name: str, optimizer: str) -> None:
    model = build_model(name, input_shape=(3, 32, 32), classes=10, seed=0, options={})
    batches = [image_batch(8, 32, seed=seed) for seed in range(20)]
    expected = eager_training(model, cross_entropy, batches, OPTIMIZERS[optimizer])
    prepared = prepare_step(model, cross_entropy, batches[0], OPTIMIZERS[optimizer])
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_same_bits(step, planned_training(step, batches), expected)
