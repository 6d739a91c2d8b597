"""Networks that nobody has thought of: predicted equals measured, and planned equals eager, on each."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.step_parts import (
    OPTIMIZERS,
    assert_plan_holds,
    assert_same_bits,
    cross_entropy,
    eager_training,
    image_batch,
    planned_training,
)
from torch import Tensor, nn

import fedhybrid as fh
from fedhybrid.executor import TrainStep, prepare_step

LAYERS = {
    "conv": lambda: nn.Conv2d(6, 6, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
    "batch_norm": lambda: nn.BatchNorm2d(6),
    "group_norm": lambda: nn.GroupNorm(2, 6),
    "relu": lambda: nn.ReLU(),
    "relu_in_place": lambda: nn.ReLU(inplace=True),
    "relu6_in_place": lambda: nn.ReLU6(inplace=True),
    "leaky_in_place": lambda: nn.LeakyReLU(0.1, inplace=True),
    "silu": lambda: nn.SiLU(),
    "gelu": lambda: nn.GELU(),
    "hardswish": lambda: nn.Hardswish(),
    "sigmoid": lambda: nn.Sigmoid(),
    "tanh": lambda: nn.Tanh(),
    "dropout": lambda: nn.Dropout(0.3),
    "max_pool": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "avg_pool": lambda: nn.AvgPool2d(3, stride=1, padding=1),
}


class RandomNet(nn.Module):
    """A chain of layers with skips: `skips[i]` adds the value from that many layers before (0: none)."""

    def __init__(self, layers: list[str], skips: list[int], scales: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(LAYERS[name]() for name in layers)
        self.skips, self.scales = skips, scales
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        past = [self.stem(x)]
        for layer, skip in zip(self.layers, self.skips, strict=False):
            value = past[-1]
            if skip and skip < len(past):
                value = value + past[-1 - skip] * 0.5 if self.scales else value + past[-1 - skip]
            elif getattr(layer, "inplace", False):
                value = value + 0.0  # what a skip or autograd still needs must not be overwritten
            past.append(layer(value))
        scores: Tensor = self.head(past[-1].mean((2, 3)))
        return scores


@settings(max_examples=12)
@given(
    st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=9),
    st.lists(st.integers(0, 4), min_size=9, max_size=9),
    st.booleans(),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from([2, 5]),
)
def test_any_network(layers: list[str], skips: list[int], scales: bool, optimizer: str, batch: int) -> None:
    torch.manual_seed(1)
    model: Any = RandomNet(layers, skips, scales)
    batches = [image_batch(batch, side=8, seed=seed) for seed in range(3)]
    expected = eager_training(model, cross_entropy, batches, OPTIMIZERS[optimizer])
    prepared = prepare_step(model, cross_entropy, batches[0], OPTIMIZERS[optimizer])
    step = TrainStep(prepared, prepared.keep_all())
    assert_plan_holds(step)
    for share in (70, 40):
        try:
            step.use_plan(prepared.plan(f"{share}%"))
        except fh.InfeasibleBudgetError:
            continue
        assert_plan_holds(step, step.plan.budget_bytes)
    step.use_plan(prepared.smallest(actions=("recompute",)))
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches), expected)
