"""Early exits: the model stays as it is, and a submodel has the first parts and one exit."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from tests.step_parts import CLASSES, small_batch, small_model
from torch import Tensor, nn

from fedhybrid.engine.runtime import classification_loss
from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, TrainStep, prepare_step
from fedhybrid.models.exits import Layout, exit_names, layout_of, until, with_exits
from fedhybrid.models.ordered import in_order, parts_of
from fedhybrid.tree import Tensors, tensors_of

MODELS = ("bert", "char-gpt", "cnn", "cnn1d", "mobilenet_v2", "resnet20", "vit")
TOKENS = ("bert", "char-gpt", "vit")


def adapted(name: str) -> tuple[nn.Module, nn.Module, Layout]:
    plain = small_model(name)
    model = with_exits(plain, small_batch(name)[0])
    layout = layout_of(tensors_of(model))
    assert layout is not None
    return plain, model, layout


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    def test_the_whole_is_the_model_that_it_was(self, name: str) -> None:
        plain, model, layout = adapted(name)
        x, _ = small_batch(name)
        assert torch.equal(plain.eval()(x), model.eval()(x))
        before, after = tensors_of(plain), tensors_of(model)
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
        assert all(key.startswith("exits.") for key in after.keys() - before.keys())
        assert layout.last == len(parts_of(plain))
        assert set(layout.params) == {key for key, _ in plain.named_parameters()}
        assert set(layout.buffers) == {key for key, _ in plain.named_buffers()}

    def test_a_submodel_has_its_parts_and_one_exit(self, name: str) -> None:
        plain, model, layout = adapted(name)
        x, _ = small_batch(name)
        model.eval()
        for last in (1, layout.last - 1, layout.last):
            part = until(model, last, layout.within(1, last))
            assert set(tensors_of(part)) == set(layout.until(last))
            scores = part(x)
            assert scores.shape == (len(x), CLASSES)
            if last == layout.last:
                assert torch.equal(scores, model(x))
            else:
                weight, bias = (tensors_of(model)[key] for key in exit_names(last))
                features = in_order(list(islice(parts_of(plain.eval()), last)), x)
                while features.ndim > 2:  # the dimension that is no channel is averaged over
                    features = features.mean(dim=1 if features.ndim == 3 and name in TOKENS else -1)
                torch.testing.assert_close(scores, nn.functional.linear(features, weight, bias), rtol=1e-5, atol=1e-5)

    def test_its_step_trains_what_is_chosen_and_the_exit(self, name: str) -> None:
        _, model, layout = adapted(name)
        last = layout.last - 1
        chosen = layout.within(last, last)[:1]
        part = until(model, last, chosen)
        prepared = prepare_step(part, classification_loss, small_batch(name), SGD(lr=0.1))
        assert set(prepared.trained) == {*chosen, *exit_names(last)}
        before = {key: tensor.clone() for key, tensor in tensors_of(part).items()}
        TrainStep(prepared, prepared.keep_all())(*small_batch(name))
        moved = {key for key, tensor in tensors_of(part).items() if not torch.equal(tensor, before[key])}
        assert moved - set(layout.buffers) == set(prepared.trained)
        assert tensors_of(model).keys() >= before.keys()
        assert all(torch.equal(tensors_of(model)[key], tensor) for key, tensor in before.items())

    def test_a_lower_part_needs_less_memory(self, name: str) -> None:
        _, model, layout = adapted(name)
        top = layout.within(layout.last, layout.last)
        peaks = [
            prepare_step(
                until(model, layout.last, names), classification_loss, small_batch(name), SGD(lr=0.1)
            ).keep_all_peak_bytes
            for names in (top, layout.within(1, layout.last))
        ]
        assert peaks[0] < peaks[1]


def test_a_sequential_needs_no_method_of_its_own() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    x = torch.randn(2, 1, 8, 8)
    model = with_exits(plain, x)
    layout = layout_of(tensors_of(model))
    assert layout is not None
    assert torch.equal(model(x), plain(x))
    assert layout.last == 4
    assert until(model, 2, ("0.weight",))(x).shape == (2, 5)


def test_a_module_in_several_places_runs_in_each() -> None:
    act = nn.ReLU()
    plain = nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 3))
    x = torch.randn(16, 4)
    model = with_exits(plain, x)
    layout = layout_of(tensors_of(model))
    assert layout is not None
    assert layout.last == 5
    assert torch.equal(model(x), plain(x))
    assert torch.equal(until(model, 5, ("4.weight",))(x), plain(x))
    weight, bias = (tensors_of(model)[key] for key in exit_names(4))
    torch.testing.assert_close(until(model, 4, ())(x), nn.functional.linear(plain[:4](x), weight, bias))


def test_first_values_follow_from_the_model() -> None:
    def exits(seed: int) -> Tensors:
        torch.manual_seed(seed)
        model = with_exits(small_model("cnn"), small_batch("cnn")[0])
        return {key: tensor for key, tensor in tensors_of(model).items() if key.startswith("exits.")}

    state = torch.get_rng_state()
    one, other = exits(1), exits(2)
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    torch.set_rng_state(state)
    with_exits(small_model("cnn"), small_batch("cnn")[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_without_early_exits_there_is_only_the_layout() -> None:
    model = with_exits(small_model("cnn"), small_batch("cnn")[0], early=False)
    assert [key for key in tensors_of(model) if key.startswith("exits.")] == ["exits.layout"]
    layout = layout_of(tensors_of(model))
    assert layout is not None
    assert layout.exits == frozenset()


def test_tensors_of_any_other_model_have_no_layout() -> None:
    assert layout_of(tensors_of(small_model("cnn"))) is None


class Pixels(nn.Module):
    """Gives a score for each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_says_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match=r"ordered\(\)"):
        with_exits(small_model("char-lstm"), small_batch("char-lstm")[0])
    with pytest.raises(ConfigError, match=r"output is \(batch, classes\)"):
        with_exits(nn.Sequential(nn.Conv2d(1, 2, 1), Pixels()), torch.randn(2, 1, 4, 4))
    named = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    named.exits = nn.Identity()
    with pytest.raises(ConfigError, match="rename it"):
        with_exits(named, torch.randn(2, 4))
