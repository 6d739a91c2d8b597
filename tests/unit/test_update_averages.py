"""The mean of updates of which some hold a part, and what is looked at before."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.update_parts import bits_of, models, tensor_of

from fedhybrid.tree import Tensors, average, detached_copy
from fedhybrid.updates import average_present, check_update, not_finite


def like(reference: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor_of(tuple(t.shape), t.dtype, generator) for name, t in reference.items()}


@given(reference=models(), weights=st.lists(st.floats(0.1, 1e6), min_size=1, max_size=4), seed=st.integers(0, 2**40))
@settings(max_examples=60)
def test_whole_updates_give_the_bits_of_the_plain_average(reference: Tensors, weights: list[float], seed: int) -> None:
    many = [like(reference, seed + i) for i in range(len(weights))]
    plain = bits_of(average(many, weights))
    assert bits_of(average_present(reference, many, weights, [{}] * len(many))) == plain
    # A tensor that only a further update lacks is of the same bits too.
    first = next(iter(reference))
    lacking = {name: t for name, t in like(reference, 1).items() if name != first}
    assert (
        bits_of(average_present(reference, [*many, lacking], [*weights, 2.0], [{}] * (len(many) + 1)))[first]
        == plain[first]
    )


def plain_mean(reference: Tensors, many: list[Tensors], weights: list[float], masks: list[Tensors]) -> Tensors:
    """Element by element, as the docstring says it."""
    means = detached_copy(reference)
    for name, tensor in means.items():
        flat = tensor.view(-1)
        for i in range(tensor.numel()):
            held = [
                (float(u[name].reshape(-1)[i]), w)
                for u, w, m in zip(many, weights, masks, strict=True)
                if name in u and (name not in m or bool(m[name].reshape(-1)[i]))
            ]
            if sum(w for _, w in held) > 0:
                mean = sum(x * w for x, w in held) / sum(w for _, w in held)
                flat[i] = mean if tensor.is_floating_point() else round(mean)
    return means


@given(data=st.data(), seed=st.integers(0, 2**40))
@settings(max_examples=40)
def test_elements_are_averaged_over_those_that_hold_them(data: st.DataObject, seed: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {"w": (3, 4), "scalar": (), "empty": (0,), "count": (2,)}
    types = {"count": torch.int64}
    generator = torch.Generator().manual_seed(seed)
    reference = {n: tensor_of(s, types.get(n, torch.float32), generator) for n, s in shapes.items()}
    many, masks, weights = [], [], []
    for i in range(data.draw(st.integers(0, 4))):
        names = data.draw(st.lists(st.sampled_from(sorted(shapes)), unique=True))
        many.append({n: t for n, t in like(reference, seed + i).items() if n in names})
        masked = [n for n in names if data.draw(st.booleans())]
        masks.append({n: torch.rand(shapes[n], generator=generator) < 0.5 for n in masked})
        weights.append(data.draw(st.sampled_from([0.0, 1.0, 2.5])))
    # What lies outside a mask is not looked at.
    told = [
        {n: t.masked_fill(~m[n], math.nan) if n in m and t.is_floating_point() else t for n, t in u.items()}
        for u, m in zip(many, masks, strict=True)
    ]
    mean = average_present(reference, told, weights, masks)
    expected = plain_mean(reference, many, weights, masks)
    assert list(mean) == list(reference)
    for name, tensor in mean.items():
        assert tensor.dtype == reference[name].dtype
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


def test_where_nobody_holds_it_the_reference_is_copied() -> None:
    reference = {"w": torch.ones(3), "v": torch.ones(3)}
    mean = average_present(reference, [{"w": torch.zeros(3)}], [1.0], [{"w": torch.tensor([True, False, False])}])
    assert mean["w"].tolist() == [0.0, 1.0, 1.0]
    mean["v"].zero_()
    mean["w"].fill_(7)
    assert reference["v"].tolist() == reference["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "masks", "problem"),
    [
        ({"w": torch.zeros(2, 3)}, {}, None),
        ({"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 3, dtype=torch.bool)}, None),
        ({}, {}, "the update is empty: at least one of the model's tensors was expected"),
        ({"W": torch.zeros(2, 3)}, {}, "the update holds 'W', which the model does not have."),
        (
            {"w": torch.zeros(3, 2)},
            {},
            "'w' is float32 of shape [3, 2] in the update, float32 of shape [2, 3] in the model; both must be the same",
        ),
        (
            {"w": torch.zeros(2, 3).double()},
            {},
            "'w' is float64 of shape [2, 3] in the update, float32 of shape [2, 3] in the model; both must be the same",
        ),
        (
            {"w": torch.zeros(2, 3)},
            {"v": torch.ones(2, dtype=torch.bool)},
            "there is a mask for 'v', which the update does not hold",
        ),
        (
            {"w": torch.zeros(2, 3)},
            {"w": torch.ones(6, dtype=torch.bool)},
            "the mask of 'w' is bool of shape [6]; bool of shape [2, 3] is needed",
        ),
        (
            {"w": torch.zeros(2, 3)},
            {"w": torch.ones(2, 3)},
            "the mask of 'w' is float32 of shape [2, 3]; bool of shape [2, 3] is needed",
        ),
    ],
)
def test_check_says_why_an_update_cannot_be_used(weights: Tensors, masks: Tensors, problem: str | None) -> None:
    reference = {"w": torch.zeros(2, 3), "v": torch.zeros(2)}
    assert check_update(weights, masks, reference) == problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_first_tensor_that_is_not_finite_is_named(wrong: float, dtype: torch.dtype) -> None:
    good = {"count": torch.tensor(2**62), "empty": torch.zeros(0, dtype=dtype), "w": torch.ones(3, 3, dtype=dtype)}
    assert not_finite(good) is None
    bad = torch.ones(50, dtype=dtype)
    bad[17] = wrong
    assert not_finite({**good, "x": bad, "y": bad}) == "x"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_large_numbers_are_finite_though_their_sum_is_not(dtype: torch.dtype) -> None:
    assert not_finite({"w": torch.full((9,), torch.finfo(dtype).max, dtype=dtype)}) is None


def test_both_infinities_do_not_cancel_out() -> None:
    assert not_finite({"w": torch.tensor([math.inf, -math.inf])}) == "w"
