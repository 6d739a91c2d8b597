"""Classifiers at several depths: nested submodels, what they answer, and how they learn from each other."""

from __future__ import annotations

import pytest
import torch
from tests.step_parts import CLASSES, small_batch, small_model
from torch import Tensor
from torch.nn import functional as F

from fedhybrid.errors import ConfigError
from fedhybrid.methods import DepthFL
from fedhybrid.methods.depthfl import SelfDistillation
from fedhybrid.models.depths import first_levels, level_names, levels_of, with_classifiers, without_classifiers
from fedhybrid.models.ordered import parts_of
from fedhybrid.tree import tensors_of

MODELS = ("bert", "char-gpt", "cnn", "cnn1d", "mobilenet_v2", "resnet18", "resnet20", "vit")


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    def test_depths_lie_in_each_other_and_end_with_the_model(self, name: str) -> None:
        plain, (x, _) = small_model(name), small_batch(name)
        model = with_classifiers(plain, x, 4, ensemble=False).eval()
        ends = levels_of(model)
        assert ends == sorted(set(ends))
        assert ends[-1] == len(parts_of(plain))
        assert len(ends) == min(4, len(parts_of(plain)) - 1)
        assert torch.equal(model(x), plain.eval()(x))
        held: set[str] = set()
        for level in range(1, len(ends) + 1):
            part = first_levels(model, level)
            assert set(tensors_of(part)) == set(level_names(model, level)) > held
            held = set(tensors_of(part))
            scores = part(x)
            assert scores.shape == (level, len(x), CLASSES)
            if level > 1:
                assert torch.equal(scores[:-1], first_levels(model, level - 1)(x))
        assert held == set(tensors_of(model)) - {"exits.layout"}
        assert torch.equal(scores[-1], plain(x))
        alone = without_classifiers(model)
        assert set(tensors_of(alone)) == set(tensors_of(plain))
        assert torch.equal(alone(x), plain(x))

    def test_the_ensemble_is_the_mean_of_all_scores(self, name: str) -> None:
        plain, (x, _) = small_model(name), small_batch(name)
        model = with_classifiers(plain, x, 3, ensemble=True).eval()
        deepest = len(levels_of(model))
        assert torch.equal(model(x).argmax(dim=1), plain.eval()(x).argmax(dim=1))  # nobody else has been trained
        with torch.no_grad():
            for tensor, parameter in model.named_parameters():
                if tensor.startswith("exits."):
                    parameter.normal_(generator=torch.Generator().manual_seed(7))
        assert torch.equal(model(x), first_levels(model, deepest)(x).mean(dim=0))


def test_resnet18_is_cut_where_its_stages_end() -> None:
    """The places of the paper's ResNet-18."""
    model = with_classifiers(small_model("resnet18"), small_batch("resnet18")[0], 4, ensemble=True)
    assert levels_of(model) == [3, 5, 7, 10]


def by_pairs(scores: Tensor, y: Tensor, weight: float) -> Tensor:
    """The paper's loss, pair by pair."""
    loss = torch.zeros(())
    for i in range(len(scores)):
        loss = loss + F.cross_entropy(scores[i], y)
        for j in range(len(scores)):
            if i != j:
                teacher = scores[j].detach().softmax(dim=1)
                kl = F.kl_div(scores[i].log_softmax(dim=1), teacher, reduction="batchmean")
                loss = loss + weight * kl / (len(scores) - 1)
    return loss


def drawn(levels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(levels)
    scores = 3 * torch.randn(levels, 6, CLASSES, generator=generator)
    return scores.requires_grad_(), torch.randint(0, CLASSES, (6,), generator=generator)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_the_loss_is_that_of_all_pairs(levels: int) -> None:
    scores, y = drawn(levels)
    found, losses = SelfDistillation(weight=0.7)(scores, y)
    expected = by_pairs(scores, y, 0.7)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(losses, F.cross_entropy(scores[-1], y, reduction="none"))
    (mine,) = torch.autograd.grad(found, scores)
    (theirs,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_classifiers_learn_from_deeper_and_from_shallower_ones() -> None:
    """What distillation adds to the gradient of each one is the way to the others' answers."""
    scores, y = drawn(2)
    with_it, _ = SelfDistillation(weight=1.0)(scores, y)
    without, _ = SelfDistillation(weight=0.0)(scores, y)
    (gradient,) = torch.autograd.grad(with_it - without, scores)
    p = scores.detach().softmax(dim=2)
    torch.testing.assert_close(gradient[0], (p[0] - p[1]) / 6, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient[1], (p[1] - p[0]) / 6, rtol=1e-4, atol=1e-6)
    assert gradient.abs().amax(dim=(1, 2)).min() > 0.01


def test_options_that_are_none() -> None:
    with pytest.raises(ConfigError) as error:
        DepthFL(levels=0, distillation=-1.0, answer="shallow")
    assert [problem.partition(" ")[0] for problem in error.value.problems] == ["levels", "distillation", "answer"]
