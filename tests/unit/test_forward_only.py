"""Steps that are only a forward pass: nothing is trained, so nothing is kept for a backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.errors import ConfigError
from fedhybrid.executor import PlanOptions, TrainStep, prepare_step
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.models.resnet import ResNet20
from fedhybrid.opwork import OpWork


class Layers(nn.Module):
    """Equal layers one after the other, each with noise that is drawn where it is used."""

    def __init__(self, depth: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.register_buffer("scale", torch.zeros(()))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            noise = torch.empty_like(layer.weight).normal_()
            x = torch.relu(F.linear(x, layer.weight + self.scale * noise, layer.bias))
        return x


def _second(work: OpWork) -> float:
    return 1e-6


def _prepared(model: nn.Module, x: Tensor, classes: int) -> PreparedStep:
    y = torch.arange(len(x)) % classes
    return prepare_step(model, classification_loss, (x, y), fh.SGD(lr=0.1), op_seconds=_second, forward_only=True)


def test_it_gives_eagers_loss_and_changes_nothing() -> None:
    model = ResNet20(input_shape=(3, 32, 32), classes=10, norm="group").requires_grad_(False)
    prepared = _prepared(model, torch.randn(8, 3, 32, 32), 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = TrainStep(prepared, prepared.keep_all())
    x, y = prepared.example
    loss = step(x, y)
    mean, each = classification_loss(model(x), y)
    assert loss.equal(mean)
    assert step.aux is not None
    assert step.aux.equal(each)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert prepared.trained == ()
    assert step.measured_peak_bytes() == step.plan.peak_bytes


def test_its_peak_does_not_grow_with_depth() -> None:
    above = []
    for depth in (4, 16):
        prepared = _prepared(Layers(depth), torch.randn(32, 64), 64)
        step = TrainStep(prepared, prepared.keep_all())
        assert step.measured_peak_bytes() == step.plan.peak_bytes
        above.append(step.plan.peak_bytes - prepared.resident_bytes)
    assert above[0] == above[1]


def test_noise_is_drawn_from_the_seed_in_the_models_order() -> None:
    model = Layers(3)
    prepared = _prepared(model, torch.randn(32, 64), 64)
    step = TrainStep(prepared, prepared.keep_all())
    x, y = prepared.example
    model.scale.fill_(0.1)
    torch.manual_seed(7)
    loss = step(x, y)
    torch.manual_seed(7)
    assert loss.equal(classification_loss(model(x), y)[0])


def test_it_fits_less_than_its_whole_program_takes() -> None:
    model = ResNet20(input_shape=(3, 32, 32), classes=10, norm="group").requires_grad_(False)
    prepared = _prepared(model, torch.randn(16, 3, 32, 32), 10)
    plan = prepared.planned(
        prepared.resident_bytes + (prepared.keep_all_peak_bytes - prepared.resident_bytes) * 3 // 4,
        PlanOptions(actions=("recompute", "split")),
    )
    step = TrainStep(prepared, plan)
    x, y = prepared.example
    whole = classification_loss(model(x), y)[0]
    torch.testing.assert_close(step(x, y), whole)
    assert step.measured_peak_bytes() == plan.peak_bytes < prepared.keep_all_peak_bytes


def test_something_to_train_is_refused_there_and_nothing_elsewhere() -> None:
    batch = torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ConfigError, match="requires_grad=False everywhere"):
        prepare_step(nn.Linear(8, 2), classification_loss, batch, fh.SGD(lr=0.1), forward_only=True)
    with pytest.raises(ConfigError, match="nothing to train"):
        prepare_step(nn.Linear(8, 2).requires_grad_(False), classification_loss, batch, fh.SGD(lr=0.1))
