"""Gradient accumulation: the bits of the eager loop over micro-batches, with its bytes predicted."""

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
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.executor import TrainStep, prepare_step


def batches(count: int = 4, batch: int = 8) -> list[Any]:
    return [image_batch(batch, seed=seed) for seed in range(count)]


@pytest.mark.parametrize(
    ("name", "optimizer", "micro_batches", "clip_norm"),
    [("resnet20", "sgd", 2, None), ("cnn", "adamw", 4, 0.5), ("cnn", "adam", 8, None), ("cnn", "sgd-plain", 2, 0.5)],
)
def test_accumulated_training_equals_eager(
    name: str, optimizer: str, micro_batches: int, clip_norm: float | None
) -> None:
    model, rule = small_model(name), OPTIMIZERS[optimizer]
    options = {"micro_batches": micro_batches, "clip_norm": clip_norm}
    expected = eager_training(model, cross_entropy, batches(), rule, **options)
    prepared = prepare_step(model, cross_entropy, batches()[0], rule, **options)
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches()), expected)


@pytest.mark.parametrize(("name", "micro_batches", "share"), [("cnn", 4, 90), ("vit", 2, 70)])
def test_peaks_are_predicted(name: str, micro_batches: int, share: int) -> None:
    model, example = small_model(name), image_batch(8)
    prepared = prepare_step(model, cross_entropy, example, OPTIMIZERS["adam"], micro_batches=micro_batches)
    plain = prepare_step(model, cross_entropy, example, OPTIMIZERS["adam"])
    assert prepared.resident_bytes == plain.resident_bytes, "R counts the whole batch"
    step = TrainStep(prepared, prepared.keep_all())
    assert_plan_holds(step)
    planned_training(step, [example])
    measured = step.measure(repeats=1)
    assert measured.bit_identical
    assert measured.gradient_error == 0.0
    assert measured.eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=1024, rel=1e-3)
    plan = prepared.plan(f"{share}%")
    step.use_plan(plan)
    assert_plan_holds(step, plan.budget_bytes)


class Wide(nn.Module):
    """Nearly all memory is parameters, so that the peak is where the updates are."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(48, 2000), nn.Linear(2000, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.wide(x.flatten(1)))
        return scores


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_a_peak_after_the_last_micro_batch(clip_norm: float | None) -> None:
    rule = fh.SGD(lr=0.1, weight_decay=0.1)
    prepared = prepare_step(Wide(), cross_entropy, image_batch(4, side=4), rule, micro_batches=2, clip_norm=clip_norm)
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_plan_holds(step)
    assert step.plan.peak_bytes == max(step.plan.timelines["planned"])
    with pytest.raises(fh.InfeasibleBudgetError) as caught:
        prepared.plan(step.plan.peak_bytes - 1)
    assert caught.value.needed_bytes == step.plan.peak_bytes
    assert prepared.plan(step.plan.peak_bytes).peak_bytes == step.plan.peak_bytes


def with_losses(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(scores, y, reduction="none")
    return losses.mean(), losses


def test_what_stands_beside_the_loss_is_joined() -> None:
    model, (x, y) = small_model("vit", depth=1), image_batch(8)
    step = fh.compile_step(model, with_losses, (x, y), optimizer=OPTIMIZERS["sgd"], micro_batches=4, budget="90%")
    assert_plan_holds(step)
    with torch.no_grad():
        parts = [with_losses(model(a), b)[1] for a, b in zip(x.chunk(4), y.chunk(4), strict=True)]
    loss = step(x, y)
    assert step.aux is not None
    assert torch.equal(step.aux, torch.cat(parts))
    assert float(loss) == pytest.approx(float(step.aux.mean()), rel=1e-5)
    assert step.measure(repeats=1).eager_peak_bytes == pytest.approx(step.plan.eager_peak_bytes, abs=1024, rel=1e-3)


def test_dictionary_batches_are_cut_too() -> None:
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    examples = [dict(zip("xy", image_batch(6, seed=seed), strict=True)) for seed in range(3)]
    model = small_model("cnn")
    expected = eager_training(model, loss_fn, examples, OPTIMIZERS["adam"], micro_batches=3)
    step = fh.compile_step(model, loss_fn, examples[0], optimizer=OPTIMIZERS["adam"], micro_batches=3)
    assert_same_bits(step, planned_training(step, examples), expected)


def test_dropout_draws_in_the_order_of_the_loop() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Dropout(0.5), nn.Linear(32, 10))
    examples = [image_batch(6, side=4, seed=seed) for seed in range(3)]
    expected = eager_training(model, cross_entropy, examples, OPTIMIZERS["sgd"], micro_batches=2)
    step = fh.compile_step(model, cross_entropy, examples[0], optimizer=OPTIMIZERS["sgd"], micro_batches=2)
    assert_same_bits(step, planned_training(step, examples), expected)


def test_less_memory_than_the_whole_batch_at_once() -> None:
    def peak(micro_batches: int) -> int:
        prepared = prepare_step(
            small_model("vit", depth=1), cross_entropy, image_batch(16), OPTIMIZERS["sgd"], micro_batches=micro_batches
        )
        return TrainStep(prepared, prepared.keep_all()).measured_peak_bytes()

    assert peak(4) < 0.5 * peak(1)


@pytest.mark.parametrize(
    ("batch", "loss_fn", "micro_batches", "words"),
    [
        (image_batch(6), cross_entropy, 4, r"divisible by 4; found shape \[6, 3, 16, 16\]"),
        (image_batch(6), cross_entropy, 0, "micro_batches must be a whole number from 1 on"),
        (image_batch(6), cross_entropy, True, "micro_batches must be a whole number from 1 on"),
        (image_batch(6), lambda s, y: (F.cross_entropy(s, y), s.mean()), 2, "one value per sample"),
        ({"x": image_batch(4)[0], "t": torch.tensor(1.0)}, lambda m, b: m(b["x"]).mean() * b["t"], 2, r"shape \[\]"),
    ],
)
def test_what_cannot_be_cut_is_refused(batch: Any, loss_fn: Any, micro_batches: int, words: str) -> None:
    with pytest.raises(fh.ConfigError, match=words):
        fh.compile_step(small_model("cnn"), loss_fn, batch, optimizer=OPTIMIZERS["sgd"], micro_batches=micro_batches)


def test_a_loss_function_with_parameters_is_refused_as_ever() -> None:
    class Owns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(10))

        def forward(self, scores: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(scores * self.scale, y)

    with pytest.raises(fh.ConfigError, match="move them into the model"):
        fh.compile_step(small_model("cnn"), Owns(), image_batch(), optimizer=OPTIMIZERS["sgd"], micro_batches=2)
