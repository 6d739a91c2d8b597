"""Every model of `MODELS` trains in a planned step exactly as in plain PyTorch, inside the planned bytes."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.step_parts import (
    OPTIMIZERS,
    as_captured,
    assert_plan_holds,
    assert_same_bits,
    cross_entropy,
    eager_training,
    planned_training,
    small_batch,
    small_model,
)

import fedhybrid as fh
from fedhybrid.executor import TrainStep, prepare_step
from fedhybrid.models import MODELS

SHARES = (100, 60, 40, 20, 10)
LINEAR = {"fourier"}  # one layer trains: its input is all that its gradient needs

# Every model meets two optimizers in the fast tests, and every optimizer two models; the other pairs are slow tests.
PAIRS = [
    pytest.param(name, optimizer, marks=[] if (i + j) % len(OPTIMIZERS) < 2 else [pytest.mark.slow])
    for i, name in enumerate(sorted(MODELS))
    for j, optimizer in enumerate(sorted(OPTIMIZERS))
]


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_twenty_steps_of_a_tight_plan_equal_eager_bit_for_bit(name: str, optimizer: str) -> None:
    model, batches = small_model(name), [small_batch(name, seed=seed) for seed in range(20)]
    with as_captured(name):
        expected = eager_training(model, cross_entropy, batches, OPTIMIZERS[optimizer])
    prepared = prepare_step(model, cross_entropy, batches[0], OPTIMIZERS[optimizer])
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert step.plan.decisions or name in LINEAR, "a plan that recomputes nothing would prove nothing"
    assert_same_bits(step, planned_training(step, batches), expected)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_predicted_peaks_are_the_allocators(name: str, batch: int) -> None:
    if batch == 1 and name in ("resnet18", "mobilenet_v2", "resnet20"):
        pytest.skip("batch norm needs more than one value per channel in its last maps")
    model, example = small_model(name), small_batch(name, batch)
    prepared = prepare_step(model, cross_entropy, example, OPTIMIZERS["sgd"])
    step = TrainStep(prepared, prepared.keep_all())
    assert_plan_holds(step)
    tried = 0
    for share in SHARES:
        try:
            plan = prepared.plan(f"{share}%")
        except fh.InfeasibleBudgetError as error:
            assert error.needed_bytes > error.budget_bytes
            continue
        step.use_plan(plan)
        assert plan.budget_bytes is not None
        assert_plan_holds(step, plan.budget_bytes)
        tried += 1
    assert tried >= 1


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_eager_peak_is_computed_without_running_the_step(name: str) -> None:
    model, example = small_model(name), small_batch(name)
    prepared = prepare_step(model, cross_entropy, example, OPTIMIZERS["adam"])
    step = TrainStep(prepared, prepared.keep_all())
    planned_training(step, [example])  # torch.optim makes its state at the first step; measure from the second on
    with as_captured(name):
        measured = step.measure(repeats=1)
    assert measured.eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=1024, rel=1e-3)
    assert measured.bit_identical
    assert measured.gradient_error == 0.0


@pytest.mark.parametrize("name", sorted(MODELS))
def test_preparing_and_measuring_leave_everything_as_it_was(name: str) -> None:
    model = small_model(name)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    prepared = prepare_step(model, cross_entropy, small_batch(name), OPTIMIZERS["adamw"])
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    step.measure(repeats=1)
    assert torch.equal(torch.get_rng_state(), generator)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert step.steps_done == 0
    assert all(not t.any() for state in step.optimizer_state.values() for t in state.values())
    assert all(p.grad is None for p in model.parameters())
