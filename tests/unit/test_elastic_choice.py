"""The choice of tensors against all subsets, the window's trace, importance, names and notes."""

from __future__ import annotations

import copy
import itertools
import random

import pytest
import torch
from tests.step_parts import small_batch, small_model
from torch import nn
from torch.nn import functional as F

from fedhybrid.errors import ConfigError
from fedhybrid.methods.elastic import (
    Choice,
    Notes,
    blended,
    change_of,
    choice_name,
    choose_tensors,
    first_window,
    importance_of,
    next_window,
    read_choice,
)
from fedhybrid.models.exits import Layout, layout_of, with_exits
from fedhybrid.tree import detached_copy, tensors_of


def seconds_of(chosen: tuple[int, ...], weight_s: list[float], pass_s: list[float]) -> float:
    """What a set takes, said slowly."""
    return sum(weight_s[j] for j in chosen) + sum(pass_s[j] for j in range(min(chosen) + 1, len(pass_s)))


def best_of_all(values: list[float], weight_s: list[float], pass_s: list[float], limit_s: float) -> float:
    best = 0.0
    for size in range(1, len(values) + 1):
        for chosen in itertools.combinations(range(len(values)), size):
            if seconds_of(chosen, weight_s, pass_s) <= limit_s:
                best = max(best, sum(values[j] for j in chosen))
    return best


@pytest.mark.parametrize("hundred", [0, 1])
def test_the_choice_is_the_best_of_all_subsets(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        compare_with_all_subsets(seed)


def compare_with_all_subsets(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 9 if seed % 10 else 12)
    values = [draw.uniform(-0.3, 1.0) for _ in range(count)]
    weight_s = [draw.choice([draw.uniform(0, 1), draw.uniform(0, 0.01)]) for _ in range(count)]
    pass_s = [draw.uniform(0, 0.5) for _ in range(count)]
    limit_s = draw.uniform(0, 1.2) * (sum(weight_s) + sum(pass_s))
    chosen = choose_tensors(values, weight_s, pass_s, limit_s)
    assert list(chosen) == sorted(set(chosen))
    assert all(values[j] > 0 for j in chosen)
    if chosen:
        assert seconds_of(chosen, weight_s, pass_s) <= limit_s * (1 + 1e-8)
    assert sum(values[j] for j in chosen) == pytest.approx(best_of_all(values, weight_s, pass_s, limit_s), abs=1e-9)


def test_many_tensors_keep_to_the_time_and_miss_little() -> None:
    draw = random.Random(7)
    count = 160
    values, weight_s = [draw.uniform(0, 1) for _ in range(count)], [draw.uniform(0.1, 1) for _ in range(count)]
    no_pass_s = [0.0] * count
    limit_s = sum(weight_s) / 3
    chosen = choose_tensors(values, weight_s, no_pass_s, limit_s)
    assert seconds_of(chosen, weight_s, no_pass_s) <= limit_s * (1 + 1e-8)
    # By value for second, the last one cut to what is left: no choice can be worth more.
    left_s, bound = limit_s, 0.0
    for value, seconds in sorted(zip(values, weight_s, strict=True), key=lambda pair: -pair[0] / pair[1]):
        bound += value * min(1.0, left_s / seconds)
        left_s = max(0.0, left_s - seconds)
    assert sum(values[j] for j in chosen) >= 0.99 * bound


def test_everything_fits_or_nothing_does() -> None:
    assert choose_tensors([1, 1, 1], [1, 1, 1], [1, 1, 1], 5) == (0, 1, 2)
    assert choose_tensors([1, 1, 1], [2, 2, 2], [1, 1, 1], 1.9) == ()
    assert choose_tensors([-1, 0, -1], [0, 0, 0], [0, 0, 0], 9) == ()
    assert choose_tensors([], [], [], 1) == ()
    assert choose_tensors([1.0], [0.0], [0.0], -1.0) == ()


def test_trace_of_the_window() -> None:
    blocks = [1.0] * 9
    windows = [first_window(blocks, 3)]
    for lowest in (2, 5, 9, 1):  # in which tensors were chosen
        windows.append(next_window(blocks, 3, last=windows[-1][1], lowest=lowest))
    assert windows == [(1, 3), (2, 6), (5, 9), (1, 3), (1, 6)]
    ends = [next_window(blocks, 3, last=last, lowest=last, contiguous=True) for last in (0, 3, 6, 9)]
    assert ends == [(1, 3), (4, 6), (7, 9), (1, 3)]


def test_a_window_reaches_the_end_where_the_time_is_not_used_up() -> None:
    assert first_window([1, 1], 5) == (1, 2)
    assert next_window([1, 1, 1, 0.5], 2, last=2, lowest=1) == (1, 4)


def test_importance_is_read_from_two_steps() -> None:
    """The same number from autograd's gradients; and it is about what the second step saves, twice the first order."""
    torch.manual_seed(0)
    model, lr = small_model("cnn"), 0.01
    x, y = small_batch("cnn")

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    seen, slopes = [detached_copy(tensors_of(model))], []
    for _ in range(2):
        slopes.append(gradients())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.sub_(lr * slopes[-1][name])
        seen.append(detached_copy(tensors_of(model)))
    found = importance_of(*seen, lr=lr, names=slopes[0])
    for name, first in slopes[0].items():
        expected = float((slopes[1][name].double() * lr * first.double()).sum())
        assert found[name] == pytest.approx(expected, rel=1e-2, abs=1e-6)
    assert change_of(seen[0], seen[1], ["head.bias"])["head.bias"] == pytest.approx(
        lr**2 * float(slopes[0]["head.bias"].square().sum()), rel=1e-3
    )


def test_blend() -> None:
    own, common = {"a": 2.0, "b": -4.0, "c": float("nan")}, {"a": 0.0, "b": 3.0, "c": 6.0, "else": 99.0}
    assert blended(own, common, beta=0.6) == pytest.approx({"a": 0.3, "b": -0.6 + 0.2, "c": 0.4})
    assert blended(own, {}, beta=0.6) == {"a": 0.5, "b": -1.0, "c": 0.0}
    assert blended(own, common, beta=1.0) == {"a": 0.5, "b": -1.0, "c": 0.0}
    assert blended({"a": 0.0}, {}, beta=0.5) == {"a": 0.0}


@pytest.fixture(scope="module")
def layout() -> Layout:
    found = layout_of(tensors_of(with_exits(small_model("resnet20"), small_batch("resnet20")[0])))
    assert found is not None
    return found


def test_names_say_everything(layout: Layout) -> None:
    for last in (1, 4, layout.last):
        trained = layout.within(max(1, last - 2), last)
        name = choice_name(layout, "train", last, trained)
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert read_choice(layout, name) == Choice(kind="train", last=last, trained=tuple(sorted(trained)))


@pytest.mark.parametrize(
    "name", ["", "train", "train-0-1", "train-12-1", "test-3-1", "train-1-zz", "train-2--1", "x-y-z"]
)
def test_a_name_that_is_none(layout: Layout, name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be probe-PART-BITS or train-PART-BITS"):
        read_choice(layout, name)


def test_a_name_with_tensors_behind_its_end(layout: Layout) -> None:
    behind = choice_name(layout, "train", 2, layout.within(5, 5))
    with pytest.raises(ConfigError):
        read_choice(layout, behind)


def test_notes_come_back() -> None:
    names = ["a", "b"]
    notes = Notes(
        trained={7: (3, 2), 2: (5, 5)},
        probed={7: (2, 6), 9: (1, 1)},
        importance={7: {"a": 0.5, "b": -1.25}, 9: {"a": 0.0, "b": 1e-30}},
        change={"a": 4.0, "b": 0.0},
    )
    written = notes.written({"mine": torch.tensor(1)}, names)
    assert Notes.read(written, names) == notes
    assert int(written["mine"]) == 1
    assert Notes.read({}, names) == Notes()
    assert Notes.read(Notes().written({}, names), names) == Notes(change={"a": 0.0, "b": 0.0})


def test_a_copy_of_the_model_is_a_model_of_its_own() -> None:
    """Worker processes copy models whose class was made on the spot."""
    model = with_exits(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(1, 4))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert not torch.equal(twin(torch.ones(1, 4)), model(torch.ones(1, 4)))
