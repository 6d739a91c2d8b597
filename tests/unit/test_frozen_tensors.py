"""Steps that train few of a model's tensors: exact, as large as planned, smaller the later the first of them is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.models import build_model


def prepared(name: str, wanted: tuple[str, ...], **options: object) -> PreparedStep:
    """The step of a small model that trains the tensors whose names end so."""
    model = build_model(name, input_shape=(3, 16, 16), classes=10, seed=1, options=options)
    for tensor, parameter in model.named_parameters():
        parameter.requires_grad_(tensor.endswith(wanted))
    batch = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    return prepare_step(model, F.cross_entropy, batch, fh.SGD(lr=0.1, momentum=0.9), op_seconds=lambda work: 1e-4)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cnn", ("bias",)),  # a convolution makes the gradient of a frozen weight although it is told not to
        ("cnn", ("head.weight",)),
        ("resnet20", ("norm2.bias", "norm2.weight")),
        ("mobilenet_v2", ("features.9.layers.0.weight", "head.bias")),
    ],
)
def test_plans_of_few_tensors_are_exact_and_hold(name: str, wanted: tuple[str, ...]) -> None:
    step = prepared(name, wanted, width=0.25)
    for plan in (step.keep_all(), step.smallest(actions=("recompute",))):
        measured = TrainStep(step, plan).measure()
        assert measured.bit_identical
        assert measured.peak_bytes == plan.peak_bytes


def test_what_comes_before_the_first_trained_tensor_is_not_kept() -> None:
    peaks = [
        prepared("resnet20", tuple(f"stages.{i}.conv1.weight" for i in range(first, 9))).keep_all().peak_bytes
        for first in (0, 3, 6)
    ]
    assert peaks[0] > peaks[1] > peaks[2]
