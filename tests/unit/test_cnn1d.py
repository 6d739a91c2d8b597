"""The 1-D CNN at several depths: the network that it was, and what reads its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.models import build_model
from fedhybrid.models.depths import levels_of, with_classifiers
from fedhybrid.models.narrowed import narrowed
from fedhybrid.models.ordered import in_order, parts_of, span_of, tensor_names
from fedhybrid.tree import tensors_of

SHAPE = (9, 32)
DEPTHS = (1, 2, 4)


def built(**options: Any) -> nn.Module:
    return build_model("cnn1d", input_shape=SHAPE, classes=6, seed=3, options={"width": 0.5} | options)


def x_of(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))


def as_it_was(norm: str = "none") -> nn.Sequential:
    """The two convolutions of the network before it had a depth."""
    of = {"none": nn.Identity, "batch": nn.BatchNorm1d}[norm]
    return nn.Sequential(
        nn.Conv1d(9, 16, 5, padding=2), of(16), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2), of(32), nn.ReLU(), nn.MaxPool1d(2),
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_depth_of_one_is_the_network_that_it_was(norm: str) -> None:
    model, features, head = built(norm=norm), as_it_was(norm), nn.Linear(32 * 8, 6)
    before = {f"features.{name}": tensor for name, tensor in tensors_of(features).items()}
    before |= {f"head.{name}": tensor for name, tensor in tensors_of(head).items()}
    after = tensors_of(model)
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}
    assert [name for name, _ in model.named_parameters()] == [
        name for name in before if "running" not in name and "batches" not in name
    ]
    features.load_state_dict({name.removeprefix("features."): after[name] for name in before if "features" in name})
    head.load_state_dict({name.removeprefix("head."): after[name] for name in before if "head" in name})
    assert torch.equal(model(x_of()), head(features(x_of()).flatten(1)))
    assert str(built(norm=norm, depth=1)) == str(model)
    assert all(torch.equal(t, after[name]) for name, t in tensors_of(built(norm=norm, depth=1)).items() if t.ndim > 1)


@pytest.mark.parametrize("depth", DEPTHS)
class TestDepths:
    def test_each_pooling_has_so_many_convolutions_before_it(self, depth: int) -> None:
        model = built(depth=depth)
        kinds = [type(layer).__name__ for layer in model.modules() if isinstance(layer, nn.Conv1d | nn.MaxPool1d)]
        assert kinds == [*["Conv1d"] * depth, "MaxPool1d"] * 2
        widths = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv1d)]
        assert widths == [16] * depth + [32] * depth
        assert model(x_of()).shape == (4, 6)

    def test_its_parts_are_the_model_wherever_it_is_cut(self, depth: int) -> None:
        model, x = built(depth=depth, norm="group"), x_of()
        parts = parts_of(model)
        assert [part.name for part in parts] == ["conv1", "conv2", "head"]
        assert sorted(name for part in parts for name in tensor_names(model, part)) == sorted(tensors_of(model))
        assert torch.equal(in_order(parts, x), model(x))
        for cut in (1, 2):
            assert torch.equal(span_of(model, cut, 3)(span_of(model, 0, cut)(x)), model(x))

    def test_every_parameter_has_a_gradient(self, depth: int) -> None:
        model = built(depth=depth)
        nn.functional.cross_entropy(model(x_of()), torch.tensor([0, 1, 2, 5])).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())

    def test_narrow_and_shallow_submodels_can_be_taken(self, depth: int) -> None:
        model, x = built(depth=depth, norm="group"), x_of()
        half = {name: tensor.shape for name, tensor in tensors_of(narrowed(model, 0.5)).items()}
        assert half == {name: t.shape for name, t in tensors_of(built(depth=depth, norm="group", width=0.25)).items()}
        assert levels_of(with_classifiers(model, x, 2, ensemble=False))[-1] == len(parts_of(model))


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(depth: int) -> None:
    with pytest.raises(ConfigError) as caught:
        built(depth=depth)
    assert caught.value.problems == (f"model 'cnn1d': depth must be at least 1, got {depth}",)
