"""The eager mode: plain PyTorch bit for bit, less memory where that is free, and never taken silently."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.step_parts import (
    OPTIMIZERS,
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
from fedhybrid.executor import eager
from fedhybrid.executor.packing import pack_saved, unpack_saved


class Undecided(nn.Module):
    """Takes one of two ways, as the values say: it cannot be captured, and not every parameter has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(48, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm, self.out = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x.flatten(1)))
        hidden = self.a(hidden) if float(x.sum()) > 0 else self.b(hidden)
        scores: Tensor = self.out(F.dropout(self.norm(hidden), 0.2))
        return scores


def batches(count: int = 8) -> list[Any]:
    return [image_batch(6, side=4, seed=seed) for seed in range(count)]


def compiled(model: nn.Module, **options: Any) -> fh.TrainStep:
    options = {"optimizer": OPTIMIZERS["adam"], "mode": "eager", **options}
    return fh.compile_step(model, cross_entropy, batches()[0], **options)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Undecided()


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 0.1}, {"micro_batches": 3}, {"micro_batches": 2, "clip_norm": 0.1}]
)
def test_equals_plain_pytorch(model: nn.Module, optimizer: str, options: dict[str, Any]) -> None:
    ways = {float(x.sum()) > 0 for x, _ in batches()}
    assert ways == {True, False}
    expected = eager_training(model, cross_entropy, batches(), OPTIMIZERS[optimizer], **options)
    step = compiled(model, optimizer=OPTIMIZERS[optimizer], **options)
    losses = planned_training(step, batches())
    step_state = {name: s for name, s in step.optimizer_state.items() if step.state.counts[name]}
    assert set(step_state) == {n for n, p in expected[0].named_parameters() if p in expected[1].state} or not any(
        step_state.values()
    )
    assert_same_bits(step, losses, expected)
    assert all(p.grad is None for p in model.parameters())


def test_says_what_it_is(model: nn.Module) -> None:
    step = compiled(model)
    assert step.mode == "eager"
    assert step.plan.solver == "eager"
    assert step.plan.peak_bytes == step.measured_peak_bytes()
    assert step.plan.decisions == ()
    assert step.plan.budget_bytes is None
    assert "eager mode" in step.source
    assert fh.Plan.from_json(step.plan.to_json()) == step.plan


def test_compiling_and_measuring_leave_everything_as_it_was(model: nn.Module) -> None:
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    step = compiled(model)
    measured = step.measure(repeats=1)
    assert measured.bit_identical
    assert measured.gradient_error == 0.0
    assert measured.peak_bytes == step.plan.peak_bytes
    assert torch.equal(torch.get_rng_state(), generator)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert step.steps_done == 0
    assert all(not t.any() for state in step.optimizer_state.values() for t in state.values())


def test_gradients_die_as_they_are_used() -> None:
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(48, 48) for _ in range(20)), nn.Linear(48, 10))
    step = compiled(model)
    planned_training(step, batches(1))
    measured = step.measure(repeats=1)
    gradients = sum(p.nbytes for p in model.parameters())
    assert measured.bit_identical
    assert step.plan.peak_bytes < measured.eager_peak_bytes - gradients // 2
    assert step.plan.eager_peak_bytes == pytest.approx(measured.eager_peak_bytes, abs=1024)


def test_saved_truth_values_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(48, 4096), nn.Linear(4096, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x.flatten(1))
            for _ in range(8):
                h = torch.where(h > 0, h * 1.5, h * 0.5)
            return self.out(h)

    model, example = Masks(), image_batch(32, side=4)
    expected = eager_training(model, cross_entropy, [example] * 2, OPTIMIZERS["sgd-plain"])
    step = fh.compile_step(model, cross_entropy, example, optimizer=OPTIMIZERS["sgd-plain"], mode="eager")
    with monkeypatch.context() as patch:
        patch.setattr(eager, "packing", lambda resident: nullcontext())
        unpacked = fh.compile_step(model, cross_entropy, example, optimizer=OPTIMIZERS["sgd-plain"], mode="eager")
    mask_bytes = 32 * 4096
    # eight masks at a bit instead of a byte, less the scratch of packing one
    assert step.plan.peak_bytes < unpacked.plan.peak_bytes - 5 * mask_bytes
    assert_same_bits(step, planned_training(step, [example] * 2), expected)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(3001) % 3 == 0,
        (torch.arange(3000) % 7 == 0).view(30, 100),
        torch.arange(2000) % 200,
        -torch.arange(2000),
        torch.arange(2000) * 10_000,
    ],
)
def test_packing_loses_nothing(tensor: Tensor) -> None:
    packed = pack_saved(tensor)
    assert not isinstance(packed, Tensor)
    assert packed.data.nbytes <= tensor.nbytes // 2
    back = unpack_saved(packed)
    assert back.dtype is tensor.dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("tensor", [torch.randn(5000), torch.arange(10) > 3, torch.arange(2000) * 2**40])
def test_what_is_not_packed(tensor: Tensor) -> None:
    assert pack_saved(tensor) is tensor


def test_batches_of_any_shape(model: nn.Module) -> None:
    examples = [image_batch(size, side=4, seed=size) for size in (6, 2, 9)]
    expected = eager_training(model, cross_entropy, examples, OPTIMIZERS["sgd"])
    step = compiled(model, optimizer=OPTIMIZERS["sgd"], other_shapes="compile")
    assert_same_bits(step, planned_training(step, examples), expected)


def test_other_batches_are_refused_as_by_a_program(model: nn.Module) -> None:
    step = compiled(model)
    program = compiled(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), mode="program")
    x, y = image_batch(6, side=4)
    before = [p.clone() for p in model.parameters()]
    for batch in ((x[:2], y[:2]), (x.double(), y), (x.mT, y), {"x": x, "y": y}):
        said = []
        for each in (step, program):
            with pytest.raises(fh.ConfigError) as caught:
                each(*batch) if isinstance(batch, tuple) else each(batch)
            said.append(str(caught.value))
        assert said[0] == said[1]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert step.steps_done == 0


def test_other_types_and_structures_are_refused_even_where_shapes_are_not(model: nn.Module) -> None:
    step = compiled(model, other_shapes="compile")
    x, y = image_batch(2, side=4)
    with pytest.raises(fh.ConfigError, match="compiled for batches of"):
        step(x.double(), y)
    with pytest.raises(fh.ConfigError, match="structure"):
        step({"x": x, "y": y})


def test_state_goes_to_torch_and_back(model: nn.Module) -> None:
    expected, twin, _ = eager_training(model, cross_entropy, batches(6), OPTIMIZERS["adam"])
    middle = eager_training(model, cross_entropy, batches(4), OPTIMIZERS["adam"])
    model.load_state_dict(middle[0].state_dict())
    step = compiled(model)
    step.load_state_dict(middle[1].state_dict())
    torch.manual_seed(0)
    for batch in batches(4):
        F.dropout(torch.ones(len(batch[0]), 64), 0.2)  # what the first four steps drew
    for batch in batches(6)[4:]:
        step(*batch)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    saved, wanted = step.state_dict(), twin.state_dict()
    assert saved["param_groups"] == wanted["param_groups"]
    assert saved["state"].keys() == wanted["state"].keys()
    for index, entry in wanted["state"].items():
        for key, tensor in entry.items():
            assert torch.equal(saved["state"][index][key], tensor)


def test_learning_rate_and_reset(model: nn.Module) -> None:
    step = compiled(model)
    start = [p.clone() for p in model.parameters()]
    step.set_lr(0.0)
    step(*batches()[0])
    assert all(torch.equal(a, b) or not a.requires_grad for a, b in zip(model.parameters(), start, strict=True))
    assert step.steps_done == 1
    step.reset_optimizer()
    assert step.steps_done == 0


def test_budgets_are_compared_with_the_measured_peak(model: nn.Module) -> None:
    peak_bytes = compiled(model).plan.peak_bytes
    step = compiled(model, budget=peak_bytes, ladder=(2 * peak_bytes,))
    assert step.plan.budget_bytes == peak_bytes
    for call in (lambda: compiled(model, budget=peak_bytes - 1), lambda: step.set_budget("1%")):
        with pytest.raises(fh.InfeasibleBudgetError, match="eager mode measures whole steps and cannot plan") as caught:
            call()
        assert caught.value.needed_bytes == peak_bytes


def test_the_program_mode_says_how_to_get_here(model: nn.Module) -> None:
    for call in (fh.compile_step, fh.plan_step):
        with pytest.raises(fh.CaptureError, match='mode="eager"'):
            call(model, cross_entropy, batches()[0], optimizer=OPTIMIZERS["adam"], budget="50%")


def test_auto_falls_back_with_a_warning_that_names_the_reason(model: nn.Module) -> None:
    with pytest.warns(fh.EagerModeWarning, match=r"forward \(test_eager_mode.py:\d+\).*eager mode"):
        step = compiled(model, mode="auto")
    assert step.mode == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), mode="auto").mode == "program"


class ReadsItsWeightLate(nn.Module):
    """The backward pass reads a parameter's value after its gradient is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.rand(48)), nn.Linear(48, 10)
        self.inner = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x.flatten(1)) * self.scale.detach()
        scores: Tensor = self.out(torch.tanh(h) * self.scale)
        return scores


def test_updates_wait_where_a_weight_is_read_late() -> None:
    torch.manual_seed(0)
    model = ReadsItsWeightLate()
    expected = eager_training(model, cross_entropy, batches(), OPTIMIZERS["sgd"])
    step = compiled(model, optimizer=OPTIMIZERS["sgd"])
    assert not step.prepared.runner.at_once
    assert_same_bits(step, planned_training(step, batches()), expected)


class Averages(nn.Module):
    """A buffer that is assigned anew, and hooks on a parameter, which only this mode runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 10)
        self.register_buffer("mean", torch.zeros(48))

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        scores: Tensor = self.layer(h - self.mean)
        return scores


def test_buffers_assigned_anew_and_hooks() -> None:
    model = Averages()
    model.layer.weight.register_hook(lambda grad: grad * 2)
    expected = eager_training(Averages(), cross_entropy, batches(0), OPTIMIZERS["sgd"])
    twin = copy.deepcopy(model)
    twin.layer.weight.register_hook(lambda grad: grad * 2)  # a copy of a module does not copy hooks of tensors
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    step = compiled(model, optimizer=OPTIMIZERS["sgd"])
    assert not model.mean.any()
    for x, y in batches(3):
        optimizer.zero_grad()
        cross_entropy(twin(x), y).backward()
        optimizer.step()
        step(x, y)
    for key, tensor in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert expected[2] == []


def test_users_own_backward_passes_are_left_alone(model: nn.Module) -> None:
    step = compiled(model)
    step(*batches()[0])
    before = [p.clone() for p in model.parameters()]
    cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert model.first.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "fast"}, "mode must be one of program, eager, auto"),
        ({"clip_norm": -1.0}, "clip_norm must be"),
        ({"micro_batches": 4}, "divisible by 4"),
        ({"optimizer": None}, "optimizer must be"),
    ],
)
def test_mistakes_get_one_clear_error(model: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(fh.ConfigError, match=words):
        compiled(model, **options)


def test_a_plan_cannot_be_followed(model: nn.Module) -> None:
    other = small_model("cnn")
    plan = fh.plan_step(other, cross_entropy, image_batch(), optimizer=OPTIMIZERS["adam"], budget="200%")
    with pytest.raises(fh.ConfigError, match="cannot follow a plan"):
        compiled(model, plan=plan)
    with pytest.raises(fh.PlanMismatchError):
        compiled(model).use_plan(plan)
