"""Narrow networks: nested, equal to the same network built narrow, and back at their places in the whole one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models import build_model
from fedhybrid.models.narrowed import cut, groups_of, narrowed, widened, with_groups, without_groups
from fedhybrid.models.shares import KeptShares, kept_shares, last_layer
from fedhybrid.tree import Tensors, tensors_of

CLASSES = 10
# Input shape, options of the whole network, options of the one that is built with half of its channels.
HALVED: dict[str, tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]] = {
    "bert": ((12,), {"dim": 32, "heads": 4}, {"dim": 16, "heads": 4}),
    "char-gpt": ((12,), {"dim": 32, "heads": 4}, {"dim": 16, "heads": 4}),
    "char-lstm": ((12,), {"hidden": 16, "layers": 2}, {"hidden": 8, "layers": 2, "embedding": 4}),
    "cnn": ((1, 8, 8), {"width": 0.5, "norm": "group"}, {"width": 0.25, "norm": "group"}),
    "cnn1d": ((9, 16), {"width": 0.5}, {"width": 0.25}),
    "resnet18": ((3, 16, 16), {"width": 0.25}, {"width": 0.125}),
    "resnet20": ((3, 16, 16), {"width": 0.5, "norm": "group"}, {"width": 0.25, "norm": "group"}),
    "vit": ((3, 16, 16), {"depth": 2, "dim": 24, "token": "class"}, {"depth": 2, "dim": 12, "token": "class"}),
}
MODELS = (*sorted(HALVED), "mobilenet_v2")


def model_of(name: str, options: dict[str, Any] | None = None, seed: int = 1) -> nn.Module:
    shape, whole, _ = HALVED.get(name, ((3, 16, 16), {"width": 0.25}, {}))
    given = whole if options is None else options
    return build_model(name, input_shape=shape, classes=CLASSES, seed=seed, options=given)


def inputs_of(name: str) -> Tensor:
    shape = HALVED.get(name, ((3, 16, 16), {}, {}))[0]
    generator = torch.Generator().manual_seed(2)
    if len(shape) == 1:
        return torch.randint(0, CLASSES, (4, *shape), generator=generator)
    return torch.randn(4, *shape, generator=generator)


def places(model: nn.Module, shares: KeptShares) -> dict[str, list[set[int]]]:
    """Of each tensor, of each dimension, the indices that are kept."""
    whole = tensors_of(model)
    return {
        name: [set(kept.places(length).tolist()) for kept, length in zip(shares[name], whole[name].shape, strict=True)]
        for name in whole
    }


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    def test_narrow_ones_lie_in_wide_ones(self, name: str) -> None:
        model = model_of(name)
        rates = (1.0, 0.5, 0.3, 0.25, 0.0625)
        found = [places(model, kept_shares(model, rate)) for rate in rates]
        for wide, narrow in pairwise(found):
            for tensor in wide:
                assert all(few <= many and few for few, many in zip(narrow[tensor], wide[tensor], strict=True))
        assert any(found[1][tensor] != found[0][tensor] for tensor in found[0])

    def test_inputs_and_classes_stay(self, name: str) -> None:
        model = model_of(name)
        whole, narrow = tensors_of(model), tensors_of(narrowed(model, 0.25))
        first, last = next(iter(whole)), f"{last_layer(model)}.weight"
        first = next((n for n in ("embedding.weight", "patches.weight") if n in whole), first)
        kept = 0 if inputs_of(name).ndim == 2 else 1
        assert narrow[first].shape[kept] == whole[first].shape[kept]
        assert narrow[last].shape[0] == CLASSES
        assert narrow[last].shape[1] < whole[last].shape[1]

    def test_the_whole_share_is_the_model(self, name: str) -> None:
        model, x = model_of(name), inputs_of(name)
        assert torch.equal(narrowed(model, 1.0).eval()(x), model.eval()(x))
        assert str(narrowed(model, 1.0)) == str(model)

    def test_tensors_go_out_and_come_back(self, name: str) -> None:
        model = model_of(name)
        adapted = with_groups(model)
        assert str(without_groups(adapted)) == str(model)
        whole = tensors_of(model)
        part = cut(whole, kept_shares(model, 0.5))
        assert {n: t.shape for n, t in part.items()} == {
            n: t.shape for n, t in tensors_of(narrowed(model, 0.5)).items()
        }
        back, there = widened(part, whole, groups_of(tensors_of(adapted)))
        for tensor, values in back.items():
            mask = there.get(tensor, torch.ones_like(values, dtype=torch.bool))
            assert torch.equal(values, whole[tensor].where(mask, torch.zeros_like(values)))
            assert int(mask.sum()) == part[tensor].numel()

    def test_nothing_is_shared_with_the_model(self, name: str) -> None:
        model = model_of(name)
        before = {n: t.clone() for n, t in tensors_of(model).items()}
        own = {t.data_ptr() for t in tensors_of(model).values()}
        for rate in (1.0, 0.5):
            assert not own & {t.data_ptr() for t in tensors_of(narrowed(model, rate)).values()}
        assert all(torch.equal(t, before[n]) for n, t in tensors_of(model).items())


@pytest.mark.parametrize("name", sorted(HALVED))
def test_half_is_the_network_built_with_half_of_the_channels(name: str) -> None:
    """By its shapes and, with the same tensors, by what it answers; mobilenet_v2 rounds its widths."""
    model, built, x = model_of(name), model_of(name, HALVED[name][2], seed=3), inputs_of(name)
    half = narrowed(model, 0.5)
    values = cut(tensors_of(model), kept_shares(model, 0.5))
    own = tensors_of(built)
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in values.items()}
    with torch.no_grad():
        for tensor, value in values.items():
            own[tensor].copy_(value)
    assert torch.equal(half.eval()(x), built.eval()(x))


def test_the_scaler_divides_while_training_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    scaled, bare = (narrowed(model, 0.25, scaler=on) for on in (True, False))
    assert torch.equal(scaled.eval()(x), bare.eval()(x))
    hidden = (x @ model[0].weight[:2].T + model[0].bias[:2]) / 0.25
    expected = hidden.relu() @ model[2].weight[:, :2].T + model[2].bias
    torch.testing.assert_close(scaled.train()(x), expected)
    torch.testing.assert_close(bare.train()(x), bare.eval()(x))


def test_heads_and_gates_keep_shares_of_their_own() -> None:
    gpt = model_of("char-gpt")
    heads = 4
    kept = places(gpt, kept_shares(gpt, 0.5))["blocks.0.attention.qkv.weight"][0]
    size = 32 // heads
    assert kept == {part * 32 + head * size + i for part in range(3) for head in range(heads) for i in range(size // 2)}
    lstm = model_of("char-lstm")
    gates = places(lstm, kept_shares(lstm, 0.5))["lstm.weight_hh_l0"][0]
    assert gates == {gate * 16 + i for gate in range(4) for i in range(8)}


def test_what_cannot_be_narrowed_is_said() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, 4))
            self.head = nn.Linear(4, 2)

    cases: dict[str, nn.Module] = {
        "no layer": nn.Sequential(nn.ReLU()),
        "holds 'table' of shape [3, 4]": Odd(),
        "the convolution 1 in 2 groups": nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)),
        "one direction, no projection": nn.Sequential(nn.LSTM(4, 4, bidirectional=True)),
        "its 7 inputs must be": nn.Sequential(nn.Linear(2, 4), nn.Linear(7, 2)),
    }
    for words, model in cases.items():
        with pytest.raises(ConfigError, match=r".*".join(words.replace("[", r"\[").replace("]", r"\]").split())):
            kept_shares(model, 0.5)
    with pytest.raises(ConfigError, match="a linear layer as the last"):
        last_layer(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1)))


def test_masks_come_back_as_masks() -> None:
    reference: Tensors = {"w": torch.ones(4, 6)}
    mask = torch.tensor([[True, False], [False, True]])
    wide, there = widened({"w": mask}, reference, {"w": (2, 1)})
    assert wide["w"].dtype == torch.bool
    assert wide["w"].nonzero().tolist() == [[0, 0], [2, 1]]
    assert there["w"].nonzero().tolist() == [[0, 0], [0, 1], [2, 0], [2, 1]]
