"""Steps of models whose parameters are bfloat16, wholly or in part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.step_parts import (
    OPTIMIZERS,
    assert_plan_holds,
    assert_same_bits,
    eager_training,
    image_batch,
    planned_training,
    small_model,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fedhybrid.executor import TrainStep, prepare_step


def batches() -> list[Any]:
    return [(x.bfloat16(), y) for x, y in (image_batch(8, seed=seed) for seed in range(4))]


def loss_fn(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores.float(), y)


class Mixed(nn.Module):
    """A bfloat16 body and a float32 head, as people keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(768, 32).bfloat16(), nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(torch.relu(self.body(x.flatten(1))).float()))
        return scores


@pytest.mark.parametrize(
    ("kind", "optimizer", "options"),
    [
        ("whole", "adamw", {}),
        ("whole", "sgd-nesterov-decay", {"clip_norm": 0.1}),
        ("mixed", "sgd-nesterov-decay", {}),
        ("mixed", "adam", {"clip_norm": 0.1}),
        ("mixed", "adamw", {"micro_batches": 2, "clip_norm": 0.1}),
    ],
)
def test_bfloat16_parameters_train_as_in_eager(kind: str, optimizer: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, rule = Mixed() if kind == "mixed" else small_model("vit", depth=1, dim=12).bfloat16(), OPTIMIZERS[optimizer]
    expected = eager_training(model, loss_fn, batches(), rule, **options)
    prepared = prepare_step(model, loss_fn, batches()[0], rule, **options)
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches()), expected)
    assert {t.dtype for s in step.optimizer_state.values() for t in s.values()} >= {torch.bfloat16}
    assert step.measure(repeats=1).eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=1024, rel=1e-3)
