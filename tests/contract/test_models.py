"""What every model of `MODELS` obeys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.models import MODELS, build_model

CONVNETS = sorted(set(MODELS) - {"vit"})
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"width": 0.25},
    "mobilenet_v2": {"width": 0.25},
    "resnet18": {"width": 0.125},
    "resnet20": {"width": 0.5},
    "vit": {"depth": 2, "dim": 24, "heads": 3},
}


def small(name: str, seed: int = 0, **options: Any) -> nn.Module:
    return build_model(name, input_shape=(1, 16, 16), classes=7, seed=seed, options=SMALL[name] | options)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 28, 28), (3, 32, 32)])
def test_scores_have_the_classes_and_every_parameter_a_gradient(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, input_shape=shape, classes=7, seed=0, options=SMALL[name])
    scores = model(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
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
def test_too_small_images_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"3 x 3|3x3"):
        build_model(name, input_shape=(1, 3, 3), classes=2, seed=0)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_learns(name: str) -> None:
    torch.manual_seed(0)
    model = small(name)
    x, y = torch.randn(16, 1, 16, 16), torch.arange(16) % 7
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
    single, both = torch.randn(1, 1, 16, 16), torch.randn(2, 1, 16, 16)
    both[0] = single[0]
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


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_dropout_is_random_in_training_only(name: str) -> None:
    model, x = small(name, dropout=0.5), torch.randn(8, 1, 16, 16)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    with pytest.raises(ConfigError, match="dropout must be in"):
        small(name, dropout=1.0)
