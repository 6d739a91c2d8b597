"""Every model of the zoo trains in a planned step as in plain PyTorch: the same bits, exactly the planned bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from tests.step_parts import OPTIMIZERS, assert_plan_holds, assert_same_bits, eager_training, planned_training
from tests.zoo import ZOO, Case

import fedhybrid as fh
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.graph import Op, Role, StepGraph, map_refs
from fedhybrid.opwork import OpWork
from fedhybrid.planner.calls import signature
from fedhybrid.planner.scratch import FILLS, scratch

SGD = OPTIMIZERS["sgd"]
LOSS_FREE = ("recompute",)  # no splits: they change the order of sums
SHARES = (100, 80, 60, 40, 30, 20, 10)
# Side of the images in the fast tests; recurrent networks unroll to thousands of calls.
SMALL_SIDES = {"gru": 6, "lstm": 8, "lstm-cell": 8}

# Run with the slow tests: larger, or close to another one.
LARGER = {
    *(name for name in ZOO if name.startswith(("hf-", "resnet50-"))),
    *("autocast-loss", "bfloat16-images", "densenet", "encoder", "inputs-as-dict", "mobilenet-v2"),
    "resnet18-group-norm",
}

every_model = pytest.mark.parametrize("name", sorted(ZOO))
each_model_fast = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGER else []) for name in sorted(ZOO)]
)


def seconds(work: OpWork) -> float:
    """An imagined device, so that plans are the same on every machine and nothing is timed."""
    return 1e-6 + work.flops * 1e-10 + work.moved_bytes * 1e-10


def prepare(case: Case, size: int) -> PreparedStep:
    return prepare_step(case.model, case.loss_fn, case.batch(size, 0), SGD, op_seconds=seconds)


@cache
def small(name: str) -> tuple[Case, PreparedStep]:
    """The case in its small size, prepared for batches of four; the tests leave the model as it was."""
    case = ZOO[name](SMALL_SIDES.get(name, 16))
    return case, prepare(case, 4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def as_captured(case: Case) -> AbstractContextManager[Any]:
    """Eager PyTorch with the kernels that the case is compared with."""
    return torch.backends.mkldnn.flags(enabled=False, allow_tf32=None) if case.unfused else nullcontext()


def assert_trains_as_eager(case: Case, prepared: PreparedStep, plans: list[fh.Plan], *, size: int, steps: int) -> None:
    """Losses, parameters, buffers, optimizer state and the generator after `steps` steps are eager's."""
    batches = [case.batch(size, seed) for seed in range(steps)]
    with as_captured(case):
        expected = eager_training(case.model, case.loss_fn, batches, SGD)
    generator = torch.get_rng_state()
    start = {k: t.clone() for k, t in tensors_of(case).items()}
    for plan in plans:
        step = TrainStep(prepared, plan)
        losses = planned_training(step, batches)
        assert torch.equal(torch.get_rng_state(), generator)
        assert_same_bits(step, losses, expected)
        with torch.no_grad():
            for key, tensor in tensors_of(case).items():
                tensor.copy_(start[key])


def tensors_of(case: Case) -> dict[str, torch.Tensor]:
    return {**dict(case.model.named_parameters()), **dict(case.model.named_buffers())}


def unsearched(prepared: PreparedStep) -> list[fh.Plan]:
    """Plans that need no search: nothing made again, all that can be, all but the inputs of blocks."""
    solvers = ("keep-all", "recompute-all", "checkpoint-blocks")
    return [prepared.plan("100000%", actions=LOSS_FREE, solver=solver) for solver in solvers]


@each_model_fast
def test_bits_of_eager(name: str) -> None:
    case, prepared = small(name)
    assert_trains_as_eager(case, prepared, unsearched(prepared), size=4, steps=3)


@each_model_fast
def test_predicted_peaks_are_the_allocators(name: str) -> None:
    _, prepared = small(name)
    step = TrainStep(prepared, prepared.keep_all())
    for plan in unsearched(prepared):
        step.use_plan(plan)
        assert_plan_holds(step)
    for share in (60, 40):
        try:
            plan = prepared.plan(f"{share}%", time_limit_s=0.2)
        except fh.InfeasibleBudgetError as error:
            assert error.needed_bytes > error.budget_bytes
            continue
        step.use_plan(plan)
        assert_plan_holds(step, plan.budget_bytes)


@each_model_fast
def test_the_eager_peak_is_computed(name: str) -> None:
    case, prepared = small(name)
    step = TrainStep(prepared, prepared.keep_all())
    with as_captured(case):
        measured = step.measure(repeats=1)
    assert measured.bit_identical
    assert measured.gradient_error == 0.0
    # A number that multiplies a tensor is saved by eager autograd as a tensor of eight bytes; the graph has none.
    assert measured.eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=256)


@each_model_fast
def test_nothing_that_random_or_in_place_operators_wrote_is_made_again(name: str) -> None:
    _, prepared = small(name)
    graph = prepared.graph
    fixed = {graph.storage_of(w) for op in graph.ops for w in op.writes}
    fixed |= {graph.storage_of(v) for op in graph.ops if op.is_random for v in op.outputs if v is not None}
    fixed |= {s.index for s in graph.storages if s.role is not Role.TEMP}
    assert not fixed & set(prepared.problem.replays)


@pytest.mark.slow
@every_model
def test_kernels_give_what_the_capture_says(name: str) -> None:
    """Type, shape, strides and memory of every result: the timeline believes what the fake tensors say."""
    case = ZOO[name](32)
    prepared = prepare(case, 32)
    for graph in (prepared.raw, prepared.graph):
        for op in {signature(graph, op): op for op in graph.ops}.values():
            assert_as_captured(graph, op)


def assert_as_captured(graph: StepGraph, op: Op) -> None:
    results = None
    for fill in FILLS:
        tensors = {v: scratch(graph.values[v], fill) for v in op.inputs}
        args, kwargs = map_refs((op.args, op.kwargs), tensors.__getitem__)
        try:
            results = op.func(*args, **kwargs)
            break
        except RuntimeError:  # it wants other numbers, such as probabilities
            continue
    assert results is not None or not op.outputs, op.name
    for output, tensor in zip(op.outputs, results if op.is_tuple else [results], strict=False):
        if output is not None:
            value = graph.values[output]
            assert (tensor.dtype, tuple(tensor.shape)) == (value.dtype, value.shape), op.name
            strides = [(a, b) for n, a, b in zip(value.shape, value.stride, tensor.stride(), strict=True) if n != 1]
            assert all(a == b for a, b in strides), op.name
            if not op.is_view and not op.writes:
                assert tensor.untyped_storage().nbytes() == graph.storages[value.storage].nbytes, op.name


@pytest.mark.slow
@every_model
def test_bits_of_eager_over_twenty_steps(name: str) -> None:
    case = ZOO[name](32)
    prepared = prepare(case, 8)
    plans = [*unsearched(prepared)[1:], prepared.smallest(actions=LOSS_FREE)]
    assert_trains_as_eager(case, prepared, plans, size=8, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 8, 32])
@every_model
def test_every_budget_at_full_size(name: str, size: int) -> None:
    case = ZOO[name](32)
    if size < case.smallest_batch:
        pytest.skip("batch norm needs more than one value per channel in its last maps")
    prepared = prepare(case, size)
    step = TrainStep(prepared, prepared.keep_all())
    for plan in (*unsearched(prepared), prepared.smallest()):
        step.use_plan(plan)
        assert_plan_holds(step)
    for share in SHARES:
        try:
            plan = prepared.plan(f"{share}%", time_limit_s=1.0)
        except fh.InfeasibleBudgetError as error:
            assert error.needed_bytes > error.budget_bytes
            continue
        step.use_plan(plan)
        assert_plan_holds(step, plan.budget_bytes)
    with as_captured(case):
        measured = step.measure(repeats=1)
    assert measured.eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, abs=1024, rel=1e-3)
