"""What may be made again and what must not; types and lifetimes that a careless capture gets wrong."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
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
)
from torch import Tensor, nn
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.graph import capture_step

SGD = OPTIMIZERS["sgd"]
BATCHES = [image_batch(12, side=4, seed=seed) for seed in range(3)]


class Dropouts(nn.Module):
    """Dropout before, between and after layers, once on a mask that scales two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Linear(48, n) for n in (48, 48, 48, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(torch.tanh(self.a(x.flatten(1))), 0.3, self.training)
        h = F.gelu(F.dropout(self.b(h) * 2, 0.5, self.training))
        mask = F.dropout(torch.ones(48), 0.5, self.training)
        h = torch.sigmoid(self.c(h) * mask) + h * mask
        scores: Tensor = self.out(F.dropout(h, 0.1, self.training))
        return scores


def everything_again(prepared: PreparedStep) -> fh.Plan:
    return prepared.plan("100000%", actions=("recompute",), solver="recompute-all")


def calls_of(name: str, source: str) -> int:
    """Calls of an operator in a program's text, in place or not."""
    return len(re.findall(rf"_{name}_?\(", source))


def test_recomputing_around_dropout_draws_nothing_again() -> None:
    torch.manual_seed(0)
    model = Dropouts()
    expected = eager_training(model, F.cross_entropy, BATCHES, SGD)
    generator = torch.get_rng_state()
    prepared = prepare_step(model, F.cross_entropy, BATCHES[0], SGD)
    step = TrainStep(prepared, everything_again(prepared))
    plain = TrainStep(prepared, prepared.keep_all()).source
    draws = [op for op in prepared.graph.ops if op.is_random]
    assert len(draws) == step.source.count("_bernoulli_(") == 4
    for name in ("tanh", "gelu", "mul"):  # what lies before, after and at a mask is made again
        assert calls_of(name, step.source) > calls_of(name, plain) > 0, name
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, BATCHES), expected)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_plan_that_drops_a_mask_is_refused() -> None:
    prepared = prepare_step(Dropouts(), F.cross_entropy, BATCHES[0], SGD)
    plan = everything_again(prepared)
    graph = prepared.graph
    for op in graph.ops:
        if op.is_random:
            (mask,) = {graph.storage_of(v) for v in op.outputs if v is not None}
            wrong = dataclasses.replace(plan.decisions[0], storage=mask)
            with pytest.raises(fh.ConfigError, match="cannot"):
                TrainStep(prepared, dataclasses.replace(plan, decisions=(wrong,)))


class MixedNorm(nn.Module):
    """A norm with float32 weights inside a bfloat16 network, as autocast leaves it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm, self.out = nn.Conv2d(3, 8, 3), norm, nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores: Tensor = self.out(self.norm(self.inner(x)).relu().mean((2, 3)))
        return scores.float()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8),
    "batch-no-weights": lambda: nn.BatchNorm2d(8, affine=False),
    "batch-no-averages": lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False),
    "group": lambda: nn.GroupNorm(2, 8),
    "group-no-weights": lambda: nn.GroupNorm(2, 8, affine=False),
    "layer": lambda: nn.LayerNorm([8, 2, 2]),
    "layer-no-bias": lambda: nn.LayerNorm([8, 2, 2], bias=False),
}


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_norms_of_bfloat16_keep_float32_statistics(norm: str) -> None:
    torch.manual_seed(0)
    model = MixedNorm(NORMS[norm]())
    expected = eager_training(model, F.cross_entropy, BATCHES, SGD)
    prepared = prepare_step(model, F.cross_entropy, BATCHES[0], SGD)
    step = TrainStep(prepared, everything_again(prepared))
    assert_plan_holds(step)
    assert step.measure(repeats=1).eager_peak_bytes == prepared.eager_peak_bytes
    assert_same_bits(step, planned_training(step, BATCHES), expected)


class HoldsOn(nn.Module):
    """A Python variable refers to a large tensor long after the arithmetic needed it."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.out = nn.Linear(48, 10), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        with torch.no_grad():
            wide = torch.cat([x] * 50)
            shift = wide.mean(0)
        scores: Tensor = self.out(torch.tanh(x + shift).repeat(40, 1)[: len(x)])
        return scores + self.small(x)


class HoldsForGood(HoldsOn):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.cat([x.flatten(1)] * 50)
        return super().forward(x)


def longest_hold(model: nn.Module) -> tuple[int, int]:
    """Ops during which the largest concatenation is held in eager PyTorch, and ops in all."""
    graph, _ = capture_step(model, F.cross_entropy, BATCHES[0])
    joins = [i for i, op in enumerate(graph.ops) if op.target == "aten.cat.default"]
    outputs = [graph.ops[i].outputs[0] for i in joins]
    return max(graph.held[graph.storage_of(v)] for v in outputs if v is not None), len(graph.ops)


def test_python_variables_count_in_the_eager_peak() -> None:
    prepared = prepare_step(HoldsOn(), F.cross_entropy, BATCHES[0], SGD)
    step = TrainStep(prepared, prepared.keep_all())
    planned_training(step, BATCHES[:1])
    assert step.measure(repeats=1).eager_peak_bytes == prepared.eager_peak_bytes
    last, _ = longest_hold(HoldsOn())
    raw = prepared.raw
    means = [i for i, op in enumerate(raw.ops) if op.target.startswith("aten.mean")]
    assert means[0] < last < raw.backward_at, "held after its last reader, until forward() returns"


def test_what_a_module_keeps_is_held_for_good() -> None:
    last, ops = longest_hold(HoldsForGood())
    assert last == ops


def test_lifetimes_leave_no_reference_behind() -> None:
    model: Any = HoldsForGood()
    capture_step(model, F.cross_entropy, BATCHES[0])
    assert not hasattr(model, "kept")


class ChannelsLast(nn.Module):
    """A depthwise convolution after a layer norm over channels: oneDNN decides the strides that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(24), nn.Conv2d(24, 24, 7, padding=3, groups=24)
        self.inner, self.out = nn.Conv2d(3, 24, 1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.inner(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores: Tensor = self.out(self.mix(h).mean((2, 3)))
        return scores


def test_convolutions_have_the_strides_of_their_kernels() -> None:
    batches = [image_batch(32, side=4, seed=seed) for seed in range(2)]
    model = ChannelsLast()
    expected = eager_training(model, F.cross_entropy, batches, SGD)
    prepared = prepare_step(model, F.cross_entropy, batches[0], SGD)
    (mixed,) = [
        op.outputs[0] for op in prepared.graph.ops if op.target == "aten.convolution.default" and op.args[8] > 1
    ]
    real = model.mix(torch.randn(32, 24, 4, 4).contiguous(memory_format=torch.channels_last))
    assert prepared.graph.values[mixed].stride == real.stride()
    step = TrainStep(prepared, everything_again(prepared))
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches), expected)


class Accumulates(nn.Module):
    """One tensor read by several layers; some of its gradients are views, which autograd does not add in place."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.inner, self.out, self.order = nn.Linear(48, 48), nn.Linear(48, 10), order

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x.flatten(1).repeat(4, 1))  # (48, 48)
        parts = [h * 2 if kind == "p" else (h.t() * 3).t() for kind in self.order]
        scores: Tensor = self.out(torch.stack(parts).sum(0))
        return scores[:12]


class SharesGradients(nn.Module):
    """Parameters that get one and the same gradient, of which autograd copies all but one."""

    def __init__(self, ways: str) -> None:
        super().__init__()
        self.ways = ways
        self.a, self.b, self.c, self.w = (nn.Parameter(torch.randn(n)) for n in (1536, 1536, 1536, 10))

    def forward(self, x: Tensor) -> Tensor:
        shared = self.a + self.b
        both = {"sum": shared, "relu": torch.relu(shared) + self.c, "three": shared + self.c}[self.ways]
        return x.flatten(1)[:, :1] * both[:10] * self.w * both.sum()


@pytest.mark.parametrize("ways", ["sum", "relu", "three"])
@pytest.mark.parametrize("optimizer", [fh.SGD(lr=0.1), fh.SGD(lr=0.1, momentum=0.9, nesterov=True)])
def test_copies_of_shared_gradients_in_the_eager_peak(ways: str, optimizer: fh.SGD) -> None:
    prepared = prepare_step(SharesGradients(ways), F.cross_entropy, image_batch(side=4), optimizer)
    step = TrainStep(prepared, prepared.keep_all())
    planned_training(step, [image_batch(side=4)])
    assert step.measure(repeats=1).eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=64)


@pytest.mark.parametrize("order", ["pp", "pv", "vp", "vv", "vvv", "pvv"])
def test_sums_of_gradients_in_the_eager_peak(order: str) -> None:
    prepared = prepare_step(Accumulates(order), F.cross_entropy, BATCHES[0], SGD)
    step = TrainStep(prepared, prepared.keep_all())
    planned_training(step, BATCHES[:1])
    # Eager autograd saves each number that multiplies a tensor as a tensor of eight bytes.
    assert step.measure(repeats=1).eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=64)
