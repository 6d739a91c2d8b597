"""The models are the published ones: their parameters are counted, and their first steps weighed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.models import build_model, find_factory
from fedhybrid.models.ordered import parts_of, span_of
from fedhybrid.tree import tensors_of, total_bytes

MIB = 2**20
IMAGE = (3, 32, 32)
BATCH_BYTES = 32 * (3 * 32 * 32 * 4 + 8)


def full(name: str, **options: Any) -> nn.Module:
    return build_model(name, input_shape=IMAGE, classes=10, seed=0, options=options)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),  # He et al. with the CIFAR stem
        ("resnet20", 269_722),  # He et al., table 6: 0.27 million
        ("mobilenet_v2", 2_236_682),  # Sandler et al. with 10 classes in place of 1,000
        ("vit", 5_362_378),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in full(name).parameters()) == parameters


@pytest.mark.parametrize(("name", "resident_mib"), [("resnet18", 85.7), ("mobilenet_v2", 17.6), ("vit", 41.3)])
def test_resident_bytes_with_momentum_at_batch_32(name: str, resident_mib: float) -> None:
    model = full(name)
    momentum_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    resident_bytes = total_bytes(tensors_of(model)) + momentum_bytes + BATCH_BYTES
    assert resident_bytes / MIB == pytest.approx(resident_mib, abs=0.05)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_map_sizes_before_the_head(name: str) -> None:
    model = full(name)
    before = span_of(model, 0, len(parts_of(model)) - 1)
    assert before(torch.zeros(2, *IMAGE)).shape[2:] == (4, 4)


def test_the_last_stage_of_mobilenet_never_shrinks() -> None:
    model = full("mobilenet_v2", width=0.35)
    assert isinstance(model.head, nn.Linear)
    assert model.head.in_features == 1280


def test_tokens_of_the_vit() -> None:
    mean, extra = full("vit"), full("vit", token="class")
    assert mean.positions.shape == (1, 64, 192)
    assert extra.positions.shape == (1, 65, 192)
    with pytest.raises(ConfigError) as caught:
        full("vit", token="cls", heads=5, patch=5, dropout=-0.1)
    assert len(caught.value.problems) == 4


class Own(nn.Module):
    def __init__(self, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes, bias=bias)


def not_a_module() -> int:
    return 3


def test_factories_of_other_packages() -> None:
    model = build_model(f"{__name__}:Own", input_shape=IMAGE, classes=4, seed=0, options={"bias": False})
    assert isinstance(model, Own)
    assert model.head.bias is None
    assert model.head.out_features == 4
    assert find_factory("torch.nn:Identity") is nn.Identity


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", "Did you mean 'resnet18'"),
        ("nowhere.at.all:make", "can be imported"),
        ("torch.nn:Linaer", "Linaer"),
        ("torch:__version__", "function or class"),
        (f"{__name__}:not_a_module", "made a int"),
        ("torch.nn:Linear", "cannot be made for input 3x32x32 and 4 classes"),
    ],
)
def test_what_is_no_factory(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(name, input_shape=IMAGE, classes=4, seed=0)
