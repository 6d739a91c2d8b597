"""Models that would be trained wrongly by a careless capture: each was wrong once, or is refused for a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
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
from torch.utils.checkpoint import checkpoint

import fedhybrid as fh
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.planner import SOLVERS

SGD = OPTIMIZERS["sgd"]


class Net(nn.Module):
    """Two square layers round `middle`, then ten scores."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1)[:12, :12])
        scores: Tensor = self.c(self.middle(self.b(h)))
        return scores


def writes_output_of_clamp(h: Tensor) -> Tensor:
    y = F.relu6(h) * 1.0
    z = F.relu6(y)
    z[:, :4].add_(7)
    return z


def two_clamps(h: Tensor) -> Tensor:
    return F.hardtanh(h, -0.1, 0.1) * 3 + F.hardtanh(h, -0.5, 0.5).tanh()


def writes_after_clone(h: Tensor) -> Tensor:
    kept = h.clone()
    h = h * 1.0
    out = F.hardtanh(kept, -0.2, 0.2)
    h[:, :3].add_(1)
    return out + F.hardtanh(h, -0.2, 0.2)


def squeezes_in_place(h: Tensor) -> Tensor:
    wide = h.unsqueeze(1) * 2
    wide.squeeze_(1)
    wide.t_()
    return (wide * 2).t_()


MIDDLES: dict[str, Callable[[Tensor], Tensor]] = {
    "minus-own-column": lambda h: h - h[:, :1],
    "plus-own-transpose": lambda h: h + h.t(),
    "plus-own-row": lambda h: h + h[0],
    "times-itself": lambda h: h * h,
    "two-clamps": two_clamps,
    "writes-output-of-clamp": writes_output_of_clamp,
    "writes-after-clone": writes_after_clone,
    "adds-double-in-place": lambda h: (h * 1.0).add_(torch.ones(12, 12, dtype=torch.float64)),
    "squeezes-in-place": squeezes_in_place,
    "checkpointed-dropout": lambda h: checkpoint(lambda t: F.dropout(torch.tanh(t), 0.5), h, use_reentrant=False),
    "reentrant-checkpoint": lambda h: checkpoint(lambda t: F.dropout(torch.tanh(t), 0.5), h, use_reentrant=True),
    "inverse": lambda h: torch.linalg.inv(h @ h.t() * 0.01 + torch.eye(12) * 3),
    "bernoulli": lambda h: h * torch.bernoulli(torch.sigmoid(h.detach())),
}


def batches() -> list[Any]:
    return [image_batch(12, side=4, seed=seed) for seed in range(3)]


@cache
def prepared_net(name: str) -> tuple[PreparedStep, dict[str, Tensor], tuple[Any, Any, list[Tensor]]]:
    """The step, its parameters as they are at the start, and what eager PyTorch makes of them."""
    torch.manual_seed(0)
    model = Net(MIDDLES[name])
    plain = copy.deepcopy(model)
    if "checkpoint" in name:  # eager's checkpoint draws again from a stored state: same bits as no checkpoint
        plain.middle = lambda h: F.dropout(torch.tanh(h), 0.5)
    expected = eager_training(plain, F.cross_entropy, batches(), OPTIMIZERS["adam"])
    prepared = prepare_step(model, F.cross_entropy, batches()[0], OPTIMIZERS["adam"])
    return prepared, {key: t.clone() for key, t in model.state_dict().items()}, expected


@pytest.mark.parametrize("solver", ["smallest", *sorted(SOLVERS)])
@pytest.mark.parametrize("name", sorted(MIDDLES))
def test_every_plan_trains_as_eager_does(name: str, solver: str) -> None:
    prepared, start, expected = prepared_net(name)
    prepared.model.load_state_dict(start)
    plan = prepared.smallest(actions=("recompute",)) if solver == "smallest" else prepared.plan("10000%", solver=solver)
    step = TrainStep(prepared, plan)
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches()), expected)


class Averages(nn.Module):
    """Buffers assigned anew in the forward pass, one of them not in the state dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 10)
        self.register_buffer("mean", torch.zeros(48))
        self.register_buffer("count", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        self.count = self.count + 1
        scores: Tensor = self.layer(h - self.mean)
        return scores


def test_buffers_assigned_anew_are_updated() -> None:
    model = Averages()
    expected = eager_training(model, F.cross_entropy, batches(), SGD)
    step = fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=SGD)
    assert_same_bits(step, planned_training(step, batches()), expected)
    assert int(model.count) == int(expected[0].count) == 3
    assert step.measure(repeats=1).bit_identical


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 10)
        self.calls = 0
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.layer(x.flatten(1))
        return self.last


def test_attributes_are_as_before_the_capture() -> None:
    model = Remembers()
    step = fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=SGD, budget="100%")
    assert model.calls == 0
    assert model.last is None
    assert step.measure(repeats=1).bit_identical


class PlainCounter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(48, 10), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        scores: Tensor = self.layer(x.flatten(1)) + self.seen
        return scores


def test_writing_a_tensor_that_is_no_buffer_is_refused() -> None:
    model = PlainCounter()
    with pytest.raises(fh.CaptureError, match="register_buffer"):
        fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=SGD)
    assert float(model.seen) == 0


def overlapping() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 10))
    model[2].weight.data = model[1].weight.data
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    model[1].weight.register_hook(lambda grad: grad * 2)
    return model


class OwnsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, scores: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores * self.scale, y)


@pytest.mark.parametrize(
    ("make", "loss_fn", "words"),
    [
        (overlapping, F.cross_entropy, "'1.weight' and '2.weight' overlap in memory"),
        (hooked, F.cross_entropy, "hooks on parameters do not run .* 1.weight"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), OwnsWeights(), "move them into the model"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), lambda out, y: 1.0, "scalar tensor.*got float"),
    ],
)
def test_what_would_train_otherwise_is_refused(make: Any, loss_fn: Any, words: str) -> None:
    with pytest.raises(fh.ConfigError, match=words):
        fh.compile_step(make(), loss_fn, batches()[0], optimizer=SGD)


def changes_shape_under_a_view(h: Tensor) -> Tensor:
    wide = (h * 2).unsqueeze(0).clone()
    view = wide[0]
    wide.squeeze_(0)
    wide.t_()
    return view + wide


def test_a_view_of_a_tensor_whose_shape_is_changed_in_place_is_refused() -> None:
    with pytest.raises(fh.CaptureError, match="form without underscore"):
        fh.compile_step(Net(changes_shape_under_a_view), F.cross_entropy, batches()[0], optimizer=SGD)


def test_a_loss_whose_memory_is_larger_than_a_scalar() -> None:
    def loss_fn(scores: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy(torch.sigmoid(scores[:, 0]), (y % 2).float())

    prepared = prepare_step(Net(torch.tanh), loss_fn, batches()[0], SGD)
    step = TrainStep(prepared, prepared.keep_all())
    assert_plan_holds(step)


def test_flat_parameters_count_their_memory_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Linear(16, 10))
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    offset = 0
    for p in model.parameters():
        p.data = flat[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    expected = eager_training(model, F.cross_entropy, batches(), SGD)
    step = fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=SGD)
    x, y = batches()[0]
    assert step.plan.resident_bytes == flat.nbytes * 2 + x.nbytes + y.nbytes
    assert_same_bits(step, planned_training(step, batches()), expected)


class Fused(torch.autograd.Function):
    """A loss that computes its gradient in the forward pass, as fused cross-entropy kernels do."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, y: Tensor) -> Tensor:
        probabilities = scores.softmax(1)
        ctx.save_for_backward(probabilities - F.one_hot(y, scores.shape[1]))
        return -(probabilities.gather(1, y[:, None]).log()).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0] / grad.shape[0], None


class DirectScores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.randn(12, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores


@pytest.mark.parametrize("model", [Net(torch.tanh), DirectScores()])
def test_a_loss_that_makes_its_gradient_in_the_forward_pass(model: nn.Module) -> None:
    expected = eager_training(model, Fused.apply, batches(), SGD)
    prepared = prepare_step(model, Fused.apply, batches()[0], SGD)
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_plan_holds(step)
    assert_same_bits(step, planned_training(step, batches()), expected)


def test_a_step_that_fails_does_not_count() -> None:
    model = Net(torch.tanh)
    expected = eager_training(model, F.cross_entropy, batches(), OPTIMIZERS["adam"])
    step = fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=OPTIMIZERS["adam"])
    x, y = batches()[0]
    with pytest.raises(IndexError):
        step(x, y + 100)
    assert_same_bits(step, planned_training(step, batches()), expected)


def test_exchanged_tensors_are_followed_or_refused() -> None:
    model = Net(torch.tanh)
    expected = eager_training(model, F.cross_entropy, batches(), SGD)
    step = fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=SGD)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    assert_same_bits(step, planned_training(step, batches()), expected)
    model.double()
    with pytest.raises(fh.ConfigError, match=r"is now torch.float64 .* compile the step again"):
        step(*batches()[0])


def test_shared_gradients_are_copied_as_autograd_copies_them() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.q = nn.Parameter(torch.randn(64, 48)), nn.Parameter(torch.randn(64, 48))
            self.out = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.out(x.flatten(1) @ (self.p + self.q).t())
            return scores

    prepared = prepare_step(Shares(), F.cross_entropy, batches()[0], SGD)
    step = TrainStep(prepared, prepared.keep_all())
    planned_training(step, batches()[:1])
    assert step.measure(repeats=1).eager_peak_bytes == pytest.approx(prepared.eager_peak_bytes, rel=1e-3)


def test_planning_options_stay_with_the_step() -> None:
    model = Net(torch.tanh)
    step = fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=SGD, budget="200%", actions=())
    with pytest.raises(fh.InfeasibleBudgetError) as caught:
        step.set_budget(step.plan.peak_bytes - 1)
    assert caught.value.needed_bytes == step.plan.peak_bytes


def test_a_plan_with_false_figures_gets_this_machines() -> None:
    prepared = prepare_step(Net(torch.tanh), F.cross_entropy, batches()[0], SGD)
    honest = prepared.keep_all()
    text = honest.to_json().replace(f'"peak_bytes": {honest.peak_bytes}', '"peak_bytes": 5')
    assert fh.Plan.from_json(text).peak_bytes == 5
    assert TrainStep(prepared, fh.Plan.from_json(text)).plan.peak_bytes == honest.peak_bytes
    boasting = text.replace('"budget_bytes": null', '"budget_bytes": 1000')
    with pytest.raises(fh.InfeasibleBudgetError):
        TrainStep(prepared, fh.Plan.from_json(boasting))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": None}, "optimizer must be fh.SGD"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)}, "optimizer must be fh.SGD.*got SGD"),
        ({"actions": "recompute"}, "actions must be a sequence of names"),
        ({"actions": None}, "actions must be a sequence of names"),
        ({"time_limit_s": -1}, "time_limit_s must be positive"),
        ({"solver": "magic"}, "unknown solver 'magic'"),
        ({"plan": "x"}, r"plan must be a fedhybrid\.Plan"),
        ({"budget": "1e400 B"}, "byte budget"),
        ({"batch": torch.randn(2, 48)}, "a batch must be a pair"),
        ({"batch": (torch.randn(2, 48, device="meta"), torch.zeros(2).long())}, "batch must be on the CPU"),
    ],
)
def test_mistakes_get_one_clear_error(options: dict[str, Any], words: str) -> None:
    arguments = {"batch": batches()[0], "optimizer": SGD, **options}
    with pytest.raises(fh.ConfigError, match=words):
        fh.compile_step(Net(torch.tanh), F.cross_entropy, **arguments)


def test_a_plan_and_a_budget_exclude_each_other() -> None:
    model = Net(torch.tanh)
    plan = fh.plan_step(model, F.cross_entropy, batches()[0], optimizer=SGD, budget="200%")
    with pytest.raises(fh.ConfigError, match="either a budget or a plan"):
        fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=SGD, plan=plan, budget="50%")


def test_a_batch_of_other_strides_is_refused() -> None:
    model = Net(torch.tanh)
    step = fh.compile_step(model, F.cross_entropy, batches()[0], optimizer=SGD)
    x, y = batches()[0]
    with pytest.raises(fh.ConfigError, match=r"\.contiguous\(\)"):
        step(x.transpose(2, 3), y)


def test_inside_no_grad() -> None:
    with torch.no_grad():
        step = fh.compile_step(Net(torch.tanh), F.cross_entropy, batches()[0], optimizer=SGD)
        assert step.measure(repeats=1).bit_identical
