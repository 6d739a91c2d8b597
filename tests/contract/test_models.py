"""What every model of `MODELS` obeys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.step_parts import example_inputs
from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.models import MODELS, build_model
from fedhybrid.models.transformer import Block

IMAGES = [(1, 16, 16), (2, 28, 28), (3, 32, 32)]
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "bert": [(1,), (10,), (80,)],
    "char-gpt": [(1,), (10,), (80,)],
    "char-lstm": [(1,), (10,), (80,)],
    "cnn1d": [(1, 4), (9, 128), (3, 30)],
}
TEXT_MODELS = ["bert", "char-gpt", "char-lstm"]
CONVNETS = sorted(set(MODELS) - {*TEXT_MODELS, "fourier", "vit"})
SMALL: dict[str, dict[str, Any]] = {
    "bert": {"depth": 2, "dim": 24, "heads": 3},
    "char-gpt": {"depth": 2, "dim": 24, "heads": 3},
    "char-lstm": {"hidden": 48, "embedding": 16},
    "cnn": {"width": 0.25},
    "cnn1d": {"width": 0.5},
    "fourier": {"features": 1000},
    "mobilenet_v2": {"width": 0.25},
    "resnet18": {"width": 0.125},
    "resnet20": {"width": 0.5},
    "vit": {"depth": 2, "dim": 24, "heads": 3},
}
SMALL_SHAPES: dict[str, tuple[int, ...]] = dict.fromkeys(TEXT_MODELS, (10,)) | {"cnn1d": (3, 32)}
CASES = [(name, shape) for name in sorted(MODELS) for shape in SHAPES.get(name, IMAGES)]


def small_shape(name: str) -> tuple[int, ...]:
    return SMALL_SHAPES.get(name, (1, 16, 16))


def small(name: str, seed: int = 0, **options: Any) -> nn.Module:
    return build_model(name, input_shape=small_shape(name), classes=7, seed=seed, options=SMALL[name] | options)


def inputs(shape: tuple[int, ...], batch: int, seed: int = 0) -> torch.Tensor:
    return example_inputs(shape, batch, torch.Generator().manual_seed(seed), classes=7)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_scores_have_the_classes_and_every_parameter_a_gradient(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(name, input_shape=shape, classes=7, seed=0, options=SMALL[name])
    scores = model(inputs(shape, 3))
    assert scores.shape == (3, 7)
    nn.functional.cross_entropy(scores, torch.tensor([0, 1, 6])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_seed_decides_the_weights_and_leaves_torch_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = small(name, 1), small(name, 1), small(name, 2)
    assert torch.equal(torch.get_rng_state(), before)
    equal = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(equal)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert first.training


@pytest.mark.parametrize("name", sorted(MODELS))
def test_bad_options_are_named_all_at_once(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small(name, dropuot=0.5, classes=3)
    assert len(caught.value.problems) == 2
    assert all(f"model {name!r} has no option" in problem for problem in caught.value.problems)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_too_small_samples_are_refused(name: str) -> None:
    shape = {1: (0,), 2: (1, 3), 3: (1, 3, 3)}[len(small_shape(name))]
    with pytest.raises(ConfigError, match=f"model {name!r}|{name.rstrip('0128')}") as caught:
        build_model(name, input_shape=shape, classes=2, seed=0)
    assert any(sep.join(map(str, shape[-2:])) in str(caught.value) for sep in ("x", " x "))


@pytest.mark.parametrize("shape", [(), (80,), (9, 128), (3, 32, 32), (3, 8, 32, 32)])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_data_of_another_kind_are_refused(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) == len(small_shape(name)):
        build_model(name, input_shape=shape, classes=7, seed=0, options=SMALL[name])
        return
    with pytest.raises(
        ConfigError, match=r"needs inputs of (channels x height x width|channels x moments|characters|tokens),"
    ):
        build_model(name, input_shape=shape, classes=7, seed=0, options=SMALL[name])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_learns(name: str) -> None:
    torch.manual_seed(0)
    model = small(name)
    x, y = inputs(small_shape(name), 16), torch.arange(16) % 7
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", CONVNETS)
def test_group_norm_leaves_no_running_statistics(name: str) -> None:
    model = small(name, norm="group")
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    assert all(norm.num_channels % norm.num_groups == 0 for norm in norms)
    assert list(model.buffers()) == []
    both = inputs(small_shape(name), 2)
    single = both[:1]
    assert torch.allclose(model(single)[0], model(both)[0], atol=1e-5), "no sample depends on the others"
    with pytest.raises(ConfigError, match="Did you mean 'group'"):
        small(name, norm="groups")


@pytest.mark.parametrize("name", CONVNETS)
def test_width_scales_the_model(name: str) -> None:
    def parameters(width: float) -> int:
        return sum(p.numel() for p in small(name, width=width).parameters())

    assert parameters(0.5) < parameters(1.0) < parameters(1.5)
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="width must be positive and finite"):
            small(name, width=wrong)


@pytest.mark.parametrize("name", ["bert", "char-gpt", "mobilenet_v2", "vit"])
def test_dropout_is_random_in_training_only(name: str) -> None:
    model, x = small(name, dropout=0.5), inputs(small_shape(name), 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    with pytest.raises(ConfigError, match="dropout must be in"):
        small(name, dropout=1.0)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_models_read_the_whole_window_in_order(name: str) -> None:
    model, x = small(name).eval(), inputs((10,), 4)
    scores = model(x)
    assert torch.allclose(model(x[:2]), scores[:2], atol=1e-6)
    assert not torch.allclose(model(x.flip(1)), scores, atol=1e-6)
    for place in range(10):
        changed = x.clone()
        changed[:, place] = (x[:, place] + 1) % 7
        assert not torch.equal(model(changed), scores), f"token {place} has no say"


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_text_may_have_more_tokens_than_classes(name: str) -> None:
    def built(**tokens: int) -> nn.Module:
        return build_model(name, input_shape=(10,), classes=7, seed=0, options=SMALL[name], **tokens)

    assert built(tokens=50)(torch.full((2, 10), 49)).shape == (2, 7)
    with pytest.raises(IndexError):
        built()(torch.full((2, 10), 7))
    with pytest.raises(ConfigError, match="has no option 'tokens'"):
        small(name, tokens=50)
    with pytest.raises(ConfigError, match="cannot be made"):
        built(tokens=-1)


def test_no_character_of_gpt_sees_those_after_it() -> None:
    model, x = small("char-gpt").eval(), inputs((10,), 4)
    states: list[torch.Tensor] = []
    assert isinstance(model.blocks, nn.Sequential)
    model.blocks[0].register_forward_hook(lambda module, given, output: states.append(output))
    model(x)
    x[:, 6] = (x[:, 6] + 1) % 7
    model(x)
    assert torch.allclose(states[0][:, :6], states[1][:, :6], atol=1e-6)
    assert not torch.allclose(states[0][:, 6:], states[1][:, 6:], atol=1e-6)


@pytest.mark.parametrize(("name", "tokens"), [("bert", 11), ("char-gpt", 10)])
def test_the_last_block_works_out_what_a_whole_block_would(name: str, tokens: int) -> None:
    model, x = small(name).eval(), torch.randn(4, tokens, 24)
    assert isinstance(model.blocks, nn.Sequential)
    last = model.blocks[-1]
    whole = Block(24, 3, 96, 0.0, causal=name == "char-gpt").eval()
    whole.load_state_dict(last.state_dict())
    assert last(x).shape == (4, 1, 24)
    assert torch.allclose(last(x), whole(x)[:, -1:], atol=1e-5)


def test_every_token_of_bert_sees_all_others() -> None:
    model, x = small("bert").eval(), inputs((10,), 4)
    states: list[torch.Tensor] = []
    assert isinstance(model.blocks, nn.Sequential)
    model.blocks[0].register_forward_hook(lambda module, given, output: states.append(output))
    model(x)
    x[:, 6] = (x[:, 6] + 1) % 7
    model(x)
    assert states[0].shape == (4, 11, 24), "the classifier's token is one more"
    changed = (states[0] != states[1]).any(dim=2)
    assert bool(changed.all())


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("bert", {"dim": 25}, "heads divide dim"),
        ("char-gpt", {"heads": 5}, "heads divide dim"),
        ("char-gpt", {"depth": 0}, "must be positive"),
        ("char-lstm", {"hidden": 0, "layers": 0}, "hidden must be at least 1"),
    ],
)
def test_sizes_that_make_no_network(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small(name, **options)
