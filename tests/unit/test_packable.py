"""What may be packed with loss, and which comparisons of the backward pass are kept exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.step_parts import OPTIMIZERS, cross_entropy, image_batch, small_model
from torch import Tensor, nn
from torch.nn import functional as F

from fedhybrid.executor import PreparedStep, TrainStep, prepare_step

WIDE = 4096  # elements of a sample, so that tensors are worth packing


class Through(nn.Module):
    """A linear layer, something in between, and a head."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head, self.between = nn.Linear(768, WIDE), nn.Linear(WIDE, 10), between

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.between(self.layer(x.flatten(1)) * 1.0))
        return scores


def prepare(model: nn.Module, loss: Callable[..., Tensor] = cross_entropy) -> PreparedStep:
    return prepare_step(model, loss, image_batch(16), OPTIMIZERS["sgd"], op_seconds=lambda work: 1e-6)


def gates_of(prepared: PreparedStep) -> set[tuple[tuple[float, float], bool]]:
    """Gates of whatever may be packed, and whether they cost nothing."""
    problem = prepared.problem_with(("encode",), ("affine-8",), measured=False)
    found = [(prepared.packable.gates(p.storage), prepared.packable.clamped(p.storage)) for p in problem.packs]
    return {(gates, clamped) for gates, clamped in found if gates is not None}


@pytest.mark.parametrize(
    ("between", "gates", "clamped"),
    [
        (F.relu, (0.0, math.inf), True),
        (F.relu6, (0.0, 6.0), True),
        (lambda x: F.hardtanh(x, -1.0, 2.0), (-1.0, 2.0), True),
        (lambda x: F.leaky_relu(x, 0.2), (0.0, math.inf), False),
        (lambda x: F.prelu(x, torch.full((1,), 0.25)), (0.0, math.inf), False),
        (F.selu, (0.0, math.inf), False),
        (lambda x: F.softshrink(x, 0.3), (-0.3, 0.3), False),
        (lambda x: F.hardswish(F.relu(x)), (0.0, 3.0), False),
    ],
)
def test_gates_are_the_numbers_that_the_backward_pass_compares_with(
    between: Callable[[Tensor], Tensor], gates: tuple[float, float], clamped: bool
) -> None:
    assert (gates, clamped) in gates_of(prepare(Through(between)))


def test_more_gates_than_codecs_keep_apart_make_a_tensor_exact() -> None:
    prepared = prepare(Through(lambda x: F.hardtanh(x) + F.hardswish(x)))
    assert gates_of(prepared) == set()


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.view(-1, 4, WIDE // 4).amax(1).repeat(1, 4),
        lambda x: x.clamp(-0.5, 0.5),
        lambda x: torch.maximum(x, 0.1 * x.flip(1)),
        lambda x: F.leaky_relu(x, 0.25),
        F.relu,
        F.selu,
    ],
)
@pytest.mark.parametrize("codec", ["affine-4", "mesa", "channel-mix", "bf16"])
def test_no_comparison_is_undone_by_rounding(between: Callable[[Tensor], Tensor], codec: str) -> None:
    """Gradients of everything before a comparison stay near the exact ones, and are numbers."""
    prepared = prepare(Through(between))
    exact = TrainStep(prepared, prepared.keep_all()).gradients()
    found = TrainStep(prepared, prepared.packed_whole(codec)).gradients()
    for name, grad in found.items():
        assert float((grad - exact[name]).norm() / exact[name].norm()) < 0.2, name


def test_what_a_loss_reads_comes_back_exactly() -> None:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        wide = out.repeat(1, 100)
        return F.mse_loss(wide * 2.0, torch.zeros_like(wide)) + F.smooth_l1_loss(wide, torch.ones_like(wide))

    prepared = prepare(Through(F.relu), loss)
    plan = prepared.packed_whole("affine-2")
    exact = TrainStep(prepared, prepared.keep_all()).gradients()
    found = TrainStep(prepared, plan).gradients()
    assert torch.equal(found["head.bias"], exact["head.bias"])


def test_noise_of_two_signs_is_no_mask() -> None:
    prepared = prepare(Through(lambda x: x * (torch.bernoulli(torch.full_like(x, 0.5)) * -2.0)))
    step = TrainStep(prepared, prepared.smallest())
    assert torch.isfinite(step.run_example())


def test_errors_of_single_tensors_add_up_in_squares() -> None:
    """The whole-model plan's real error is what the planner adds up, within a quarter."""
    prepared = prepare_step(small_model("resnet20"), cross_entropy, image_batch(16), OPTIMIZERS["sgd"])
    for codec in ("affine-8", "affine-4"):
        problem = prepared.problem_with(("encode",), (codec,))
        predicted = sum(pack.error**2 for pack in problem.packs) ** 0.5
        measured = TrainStep(prepared, prepared.packed_whole(codec)).measure(repeats=1).gradient_error
        assert predicted == pytest.approx(measured, rel=0.25), codec


def test_a_blank_part_of_the_example_does_not_hide_errors() -> None:
    prepared = prepare(Through(F.relu))
    x, _ = prepared.example
    x[:4] = 0
    options = {"actions": ("encode",), "codecs": ("affine-2",), "max_gradient_error": 0.9, "solver": "all-encoded"}
    plan = prepared.plan("99%", **options)
    assert plan.lossy
    assert plan.gradient_error == pytest.approx(TrainStep(prepared, plan).measure(repeats=1).gradient_error, rel=0.15)


@pytest.mark.parametrize("budget", ["70%", "55%", "45%"])
def test_a_larger_cap_is_never_slower_than_a_bound_says(budget: str) -> None:
    prepared = prepare_step(
        small_model("resnet20"),
        cross_entropy,
        image_batch(8),
        OPTIMIZERS["sgd"],
        op_seconds=lambda work: 1e-6 + work.flops * 1e-10 + work.moved_bytes * 1e-10,
    )
    plans = [
        prepared.plan(budget, actions=("recompute", "encode"), max_gradient_error=cap) for cap in (0.01, 0.05, 0.2)
    ]
    for cap, plan in zip((0.01, 0.05, 0.2), plans, strict=True):
        assert (plan.gradient_error or 0.0) <= cap
        assert plan.bound_extra_time_s <= min(p.extra_time_s for p in plans if (p.gradient_error or 0.0) <= cap) + 1e-12
