"""What can be captured, what the capture leaves alone, and what is refused."""

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
)
from torch import Tensor, nn
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.executor import TrainStep, prepare_step

SGD = OPTIMIZERS["sgd"]


def sequence_batches(count: int = 3) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randint(0, 11, (4, 6), generator=generator), torch.randint(0, 11, (4,), generator=generator))
        for _ in range(count)
    ]


class Tied(nn.Module):
    """Embedding and output layer share one matrix; a frozen scale and a buffer take part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.frozen = nn.Parameter(torch.ones(8) * 0.5, requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.randn(8, generator=torch.Generator().manual_seed(1)))
        self.mix = nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).mean(1) * self.frozen + self.shift
        h = F.dropout(torch.tanh(self.mix(h)) + h, 0.2, self.training)
        scores: Tensor = self.out(self.mix(h))  # a module used twice
        return scores


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(11, 8), kind(8, 8, batch_first=True), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.cell(self.embed(tokens))
        scores: Tensor = self.out(states[:, -1])
        return scores


class WritesSlices(nn.Module):
    """Writes parts of a tensor in place: must stay in place and must never be replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1)[:, :12])
        filled = torch.zeros_like(h)
        filled[:, :6] = h[:, :6].relu()
        filled[:, 6:] += self.b(h)[:, 6:]
        scores: Tensor = self.c(filled.tanh())
        return scores


class InPlaceBehindAView(nn.Module):
    """A view made before an in-place activation is read after it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1)[:, :12])
        view = h.view(-1, 3, 4)
        F.relu_(h)
        scores: Tensor = self.c(view.flatten(1) * 2 + h)
        return scores


def image_batches() -> list[Any]:
    return [image_batch(seed=seed) for seed in range(3)]


CASES: dict[str, tuple[Any, Any]] = {
    "tied-frozen-unused": (Tied, sequence_batches),
    "gru": (lambda: Recurrent(nn.GRU), sequence_batches),
    "lstm": (lambda: Recurrent(nn.LSTM), sequence_batches),
    "slices": (WritesSlices, image_batches),
    "view-before-in-place": (InPlaceBehindAView, image_batches),
}


@pytest.mark.parametrize("optimizer", ["sgd-nesterov-decay", "adam"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_planned_training_equals_eager(name: str, optimizer: str) -> None:
    make, batches = CASES[name][0], CASES[name][1]()
    torch.manual_seed(3)
    model = make()
    with torch.backends.mkldnn.flags(enabled=name != "lstm", allow_tf32=None):  # eager's fused layer rounds otherwise
        expected = eager_training(model, F.cross_entropy, batches, OPTIMIZERS[optimizer])
    prepared = prepare_step(model, F.cross_entropy, batches[0], OPTIMIZERS[optimizer])
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_plan_holds(step)
    with torch.backends.mkldnn.flags(enabled=name != "lstm", allow_tf32=None):
        assert_same_bits(step, planned_training(step, batches), expected)


def test_a_dictionary_batch_goes_to_the_loss_with_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    batches = [{"x": torch.randn(5, 4), "y": torch.randn(5, 1)} for _ in range(3)]

    def loss_fn(net: Any, batch: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(net(batch["x"]), batch["y"])

    expected = eager_training(model, loss_fn, batches, SGD)
    step = fh.compile_step(model, loss_fn, batches[0], optimizer=SGD)
    assert_same_bits(step, planned_training(step, batches), expected)


def test_several_inputs_and_an_auxiliary_output() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            scores: Tensor = self.layer(a + b)
            return scores

    def loss_fn(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        each = F.cross_entropy(scores, y, reduction="none")
        return each.mean(), each

    a, b, y = torch.randn(6, 4), torch.randn(6, 4), torch.randint(0, 3, (6,))
    step = fh.compile_step(Adds(), loss_fn, ((a, b), y), optimizer=SGD)
    loss = step((a, b), y)
    assert step.aux is not None
    assert step.aux.shape == (6,)
    assert torch.allclose(step.aux.mean(), loss)
    assert_plan_holds(step)


def test_batch_statistics_are_counted_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                          nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 10))  # fmt: skip
    prepared = prepare_step(model, F.cross_entropy, image_batch(), SGD)
    step = TrainStep(prepared, prepared.plan("1000%", solver="recompute-all"))
    assert "normalise_again" in step.source or "normalise_from_scratch" in step.source
    step(*image_batch())
    assert [int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")] == [1, 1]


def test_random_masks_are_eagers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    batches = image_batches()
    expected = eager_training(model, F.cross_entropy, batches, SGD)
    drawn = torch.get_rng_state()
    prepared = prepare_step(model, F.cross_entropy, batches[0], SGD)
    step = TrainStep(prepared, prepared.smallest(actions=("recompute",)))
    assert_same_bits(step, planned_training(step, batches), expected)
    assert torch.equal(torch.get_rng_state(), drawn), "the step must draw as often as eager does"


def test_evaluation_mode_is_captured_as_set() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(784, 10))
    model.eval()
    batches = image_batches()
    expected = eager_training(model, F.cross_entropy, batches, SGD)
    step = fh.compile_step(model, F.cross_entropy, batches[0], optimizer=SGD)
    assert_same_bits(step, planned_training(step, batches), expected)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x)
        return scores if scores.sum() > 0 else -scores


def test_a_branch_on_values_is_refused_with_its_line() -> None:
    with pytest.raises(fh.CaptureError, match=r"forward \(test_capture\.py:\d+\).*torch\.where"):
        fh.compile_step(Branches(), F.cross_entropy, (torch.randn(3, 4), torch.zeros(3).long()), optimizer=SGD)


@pytest.mark.parametrize(
    ("model", "loss_fn", "batch", "words"),
    [
        (nn.Linear(4, 2), lambda out, y: out, (torch.randn(3, 4), torch.zeros(3)), "must return a scalar"),
        (nn.Linear(4, 2).requires_grad_(False), F.mse_loss, (torch.randn(3, 4), torch.zeros(3, 2)), "nothing to train"),
        (nn.Linear(4, 2), F.mse_loss, (torch.randn(3, 4), 1.0), "must hold tensors only, got float"),
    ],
)
def test_what_cannot_be_a_step(model: nn.Module, loss_fn: Any, batch: Any, words: str) -> None:
    with pytest.raises(fh.ConfigError, match=words):
        fh.compile_step(model, loss_fn, batch, optimizer=SGD)


def test_another_batch_shape_is_refused() -> None:
    step = fh.compile_step(nn.Linear(4, 2), F.mse_loss, (torch.randn(3, 4), torch.zeros(3, 2)), optimizer=SGD)
    with pytest.raises(fh.ConfigError, match=r"compiled for batches of shapes \[\(3, 4\), \(3, 2\)\]"):
        step(torch.randn(2, 4), torch.zeros(2, 2))
