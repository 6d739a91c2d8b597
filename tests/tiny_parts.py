"""Small quantised networks for tests, on the embedded digits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fedhybrid.data import load_dataset
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.executor import SGD, PreparedStep, TrainStep, prepare_step
from fedhybrid.methods.tiny import for_device, submodel_of
from fedhybrid.models import build_model
from fedhybrid.models.quantised import QuantisedNet, quantise
from fedhybrid.protocols import Submodel
from fedhybrid.tree import load_into, tensors_of

OPTIONS: dict[str, dict[str, Any]] = {
    "cnn": {"width": 0.25, "norm": "batch"},
    "resnet20": {"width": 0.25},
    "mobilenet_v2": {"width": 0.1},
}


def batch(count: int) -> tuple[Tensor, Tensor]:
    """The first digits."""
    return load_dataset("digits").train.batch(torch.arange(count))


def separable() -> nn.Module:
    """What MobileNet is made of, once: a convolution, one for each channel, one for each pixel."""
    layers = [nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1)]
    units = [unit for conv in layers for unit in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for conv in layers:
            conv.reset_parameters()
        head = nn.Linear(16, 10)
    return nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@functools.cache
def quantised(name: str = "cnn", *, qas: bool = True) -> QuantisedNet:
    """An untrained network with running statistics, quantised; not to be changed."""
    x, _ = batch(32)
    if name == "separable":
        model: nn.Module = separable()
    else:
        model = build_model(name, input_shape=(1, 32, 32), classes=10, seed=1, options=OPTIONS[name])
    for _ in range(20):
        model(x)
    return quantise(model.eval(), x, qas=qas)


def submodel(net: QuantisedNet, scheme: str, *, integer: bool = False, lr: float = 0.05) -> Submodel:
    """A scheme's submodel with the network's values."""
    whole = Submodel(module=net, loss_fn=classification_loss, optimizer=SGD(lr=lr))
    made = submodel_of(whole, scheme, integer=integer)
    load_into(tensors_of(made.module), for_device(tensors_of(net), scheme, integer=integer, seed=4))
    return made


def prepared(made: Submodel, samples: int = 8) -> PreparedStep:
    """Its captured step."""
    return prepare_step(made.module, made.loss_fn, batch(samples), made.optimizer, op_seconds=lambda work: 1e-6)


def step_of(made: Submodel, samples: int = 8) -> TrainStep:
    """Its step, unplanned."""
    captured = prepared(made, samples)
    return TrainStep(captured, captured.keep_all())
