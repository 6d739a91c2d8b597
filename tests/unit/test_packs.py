"""Tensors that wait for the backward pass in another form: bits, codecs, a file. Bytes and errors are as planned."""

from __future__ import annotations

from collections import Counter
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
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step


class Dropouts(nn.Module):
    """Two masks that must come back as they were drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(768, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, 256),
            nn.GELU(),
            nn.Dropout(0.1),
        )
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layers(x))
        return scores


def actions_of(plan: fh.Plan) -> Counter[str]:
    return Counter(decision.action for decision in plan.decisions)


def test_random_masks_wait_as_bits_and_training_stays_eagers() -> None:
    model, batches = Dropouts(), [image_batch(1024, seed=seed) for seed in range(3)]
    expected = eager_training(model, cross_entropy, batches, OPTIMIZERS["sgd"])
    prepared = prepare_step(model, cross_entropy, batches[0], OPTIMIZERS["sgd"])
    step = TrainStep(prepared, prepared.plan("70%"))
    assert actions_of(step.plan)["encode:bits"] == 2
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches), expected)


@pytest.fixture(scope="module", params=["resnet20", "vit"])
def prepared(request: Any) -> PreparedStep:
    return prepare_step(small_model(request.param), cross_entropy, image_batch(8), OPTIMIZERS["sgd"])


class TestEncode:
    def test_the_gradient_error_is_capped_and_near_the_prediction(self, prepared: PreparedStep) -> None:
        step = TrainStep(prepared, prepared.plan("65%", actions=("encode",), max_gradient_error=0.2))
        assert any("affine" in action for action in actions_of(step.plan))
        assert 0 < step.plan.gradient_error <= 0.2
        assert not step.plan.bit_identical
        assert_plan_holds(step, step.plan.budget_bytes)
        measured = step.measure(repeats=1).gradient_error
        assert 0 < measured < 2 * step.plan.gradient_error

    def test_a_plan_with_codecs_travels_as_json(self, prepared: PreparedStep) -> None:
        plan = prepared.plan("65%", actions=("encode",), max_gradient_error=0.2)
        again = TrainStep(prepared, fh.Plan.from_json(plan.to_json()))
        assert again.measured_peak_bytes() == plan.peak_bytes
        assert again.plan.gradient_error == pytest.approx(plan.gradient_error)

    def test_without_room_for_errors_nothing_lossy_is_chosen(self, prepared: PreparedStep) -> None:
        plan = prepared.plan("80%", actions=("recompute", "encode"), max_gradient_error=1e-9)
        assert plan.gradient_error == 0
        assert plan.bit_identical


class TestOffload:
    def test_what_waits_in_a_file_comes_back_bit_for_bit(self, prepared: PreparedStep) -> None:
        batches = [image_batch(8, seed=seed) for seed in range(4)]
        expected = eager_training(prepared.model, cross_entropy, batches, OPTIMIZERS["sgd"])
        weights = {key: tensor.clone() for key, tensor in prepared.model.state_dict().items()}
        step = TrainStep(prepared, prepared.plan("55%", actions=("offload",)))
        assert actions_of(step.plan)["encode:offload"] > 0
        assert set(actions_of(step.plan)) <= {"encode:offload", "encode:bits"}
        assert_plan_holds(step, step.plan.budget_bytes)
        try:
            assert_same_bits(step, planned_training(step, batches), expected)
        finally:
            prepared.model.load_state_dict(weights)

    def test_the_file_is_asked_for_ahead(self, prepared: PreparedStep) -> None:
        source = TrainStep(prepared, prepared.plan("55%", actions=("offload",))).source
        assert source.index("file.write") < source.index("file.prefetch") < source.index("file.read")


def test_gates_survive_two_bits() -> None:
    """With every ReLU output in 2 bits, each unit that was off stays off: its gradient is exactly zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 128), nn.ReLU(), nn.Linear(128, 10))
    with torch.no_grad():
        model[1].bias[:40] = -100.0  # these are never on
    prepared = prepare_step(model, cross_entropy, image_batch(64), OPTIMIZERS["sgd"])
    problem = prepared.problem_with(("encode",))
    plan = prepared.plan("99%", actions=("encode",), max_gradient_error=0.99, solver="all-encoded")
    assert len(problem.packs) == 3
    step = TrainStep(prepared, plan)
    assert actions_of(step.plan) == {"encode:affine-2": 1}
    gradients = step.gradients()
    assert not gradients["1.weight"][:40].any()
    assert gradients["1.weight"][40:].any()


class Toggle(torch.autograd.Function):
    """Its backward pass writes what the forward pass saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mask = x > 0
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        ctx.mask.logical_not_()
        for _ in range(8):
            grad = grad + 0.5
        return torch.where(ctx.mask, grad, -grad)


class PartlyWritten(nn.Module):
    """Writes a part of what it saves: by a random operator, and by an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(768, 256)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.flatten(1)) * 1.5
        y[:, :64].exp_()
        noise = torch.full_like(y, 0.25).detach()
        noise[:, :5].bernoulli_(0.5)
        scores: Tensor = self.head(Toggle.apply(torch.tanh(y) * noise))
        return scores


@pytest.mark.parametrize("actions", [("recompute",), ("offload",), ("recompute", "split", "offload")])
def test_what_is_written_in_part_or_in_the_backward_pass_is_never_packed(actions: tuple[str, ...]) -> None:
    model, batches = PartlyWritten(), [image_batch(64, seed=seed) for seed in range(2)]
    expected = eager_training(model, cross_entropy, batches, OPTIMIZERS["sgd"])
    prepared = prepare_step(model, cross_entropy, batches[0], OPTIMIZERS["sgd"])
    step = TrainStep(prepared, prepared.plan("1000%", actions=actions, solver="all-encoded"))
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches), expected)


def test_a_solver_that_ignores_the_cap_is_refused() -> None:
    prepared = prepare_step(small_model("resnet20"), cross_entropy, image_batch(8), OPTIMIZERS["sgd"])
    with pytest.raises(fh.ConfigError, match="does not keep to max_gradient_error"):
        prepared.plan("200%", actions=("encode",), solver="all-encoded", max_gradient_error=1e-6)
