"""Models in parts: run one after the other they are the model, and cut anywhere they are two that know all names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models import build_model
from fedhybrid.models.ordered import in_order, parts_of, span_of, tensor_names
from fedhybrid.tree import tensors_of

MODELS = {
    "cnn": ((3, 16, 16), {"norm": "batch"}),
    "cnn1d": ((9, 32), {}),
    "resnet20": ((3, 16, 16), {"width": 0.25}),
    "mobilenet_v2": ((3, 16, 16), {"width": 0.25}),
    "vit": ((3, 16, 16), {"depth": 2, "dim": 24, "token": "class"}),
    "bert": ((12,), {"depth": 2}),
    "char-gpt": ((12,), {"depth": 2}),
}


def sample(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(10, (2, *shape)) if len(shape) == 1 else torch.randn(2, *shape)


@pytest.mark.parametrize("name", MODELS)
def test_two_spans_are_the_model_wherever_it_is_cut(name: str) -> None:
    shape, options = MODELS[name]
    model = build_model(name, input_shape=shape, classes=10, seed=1, options=options).eval()
    x, parts = sample(name, shape), parts_of(model)
    held = [tensor for part in parts for tensor in tensor_names(model, part)]
    assert sorted(held) == sorted(tensors_of(model)), "each tensor is held by one part"
    for cut in range(1, len(parts)):
        first, second = span_of(model, 0, cut), span_of(model, cut, len(parts))
        assert torch.equal(second(first(x)), model(x))
        assert sorted([*tensors_of(first), *tensors_of(second)]) == sorted(held)
        assert not {id(p) for p in first.parameters()} & {id(p) for p in model.parameters()}


def test_an_activation_may_stand_in_several_places() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 2))
    x = torch.randn(3, 4)
    assert len(parts_of(model)) == 5
    assert torch.equal(in_order(parts_of(model), x), model(x))
    assert torch.equal(span_of(model, 3, 5)(span_of(model, 0, 3)(x)), model(x))


def test_a_layer_may_not() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="has a module with parameters in two places"):
        parts_of(nn.Sequential(layer, nn.ReLU(), layer))


def test_a_model_that_does_not_say_its_parts_is_refused() -> None:
    model = build_model("char-lstm", input_shape=(12,), classes=10, seed=1)
    with pytest.raises(ConfigError, match=r"CharLstm.* must be one that can be cut into parts"):
        parts_of(model)
