"""What every operator of `SPLITS` gives in chunks: its own results, in less memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tests.contract.split_cases import CALLS, Call
from torch import Tensor

from fedhybrid.graph import Ref, Value, allocator_events, overload, peak_of
from fedhybrid.planner.splits import SPLITS

CHUNKS = (1, 2, 3, 8)
NAMES = sorted(SPLITS)


def fresh(call: Call) -> Call:
    """A copy of a call whose tensors keep their strides."""
    args, kwargs = call
    return tuple(copied(a) for a in args), {k: copied(a) for k, a in kwargs.items()}


def copied(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype).copy_(arg)


def results_of(found: Any) -> list[Tensor | None]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def value_of(x: Tensor, index: int) -> Value:
    return Value(index, index, tuple(x.shape), x.stride(), 0, x.dtype, None)


def as_graph_arguments(call: Call) -> tuple[list[Any], dict[str, Any], list[Value]]:
    """The call as an `Op` of a graph holds it."""
    values: list[Value] = []

    def reference(arg: Any) -> Any:
        if isinstance(arg, Tensor):
            values.append(value_of(arg, len(values)))
            return Ref(len(values) - 1)
        return arg

    return [reference(a) for a in call[0]], {k: reference(a) for k, a in call[1].items()}, values


def takeovers(name: str, call: Call) -> tuple[int, ...]:
    first = results_of(overload(name)(*fresh(call)[0], **call[1]))[0]
    if first is None:
        return ()
    args, _, values = as_graph_arguments(call)
    return SPLITS[name].may_take_over(args, values, value_of(first, -1))


def most_chunks(name: str, call: Call) -> int:
    return SPLITS[name].most_chunks(*as_graph_arguments(call))


def assert_same(name: str, found: Any, expected: Any) -> None:
    for part, whole in zip(results_of(found), results_of(expected), strict=True):
        if whole is None or part is None:
            assert part is whole
            continue
        assert (part.shape, part.stride(), part.dtype) == (whole.shape, whole.stride(), whole.dtype)
        if SPLITS[name].exact:
            assert torch.equal(part, whole)
        else:
            rounding = torch.finfo(whole.dtype).eps
            assert (part - whole).double().norm() <= max(1e-5, rounding) * whole.double().norm()


def peak_bytes(run: Any) -> int:
    run()
    with allocator_events() as events:
        found = run()
    del found
    return peak_of(events)


@pytest.mark.parametrize("name", NAMES)
class TestEverySplit:
    def test_gives_the_operators_results(self, name: str) -> None:
        for call in CALLS[name](1):
            expected_call = fresh(call)
            expected = overload(name)(*expected_call[0], **expected_call[1])
            for chunks in CHUNKS:
                args, kwargs = fresh(call)
                assert_same(name, SPLITS[name].func(*args, **kwargs, chunks=chunks), expected)
                for given, left in zip(args, expected_call[0], strict=True):
                    if isinstance(given, Tensor):  # running statistics are updated once, all else is as it was
                        assert torch.equal(given, left)

    def test_takes_over_the_memory_it_says(self, name: str) -> None:
        found = set()
        for call in CALLS[name](1):
            fresh_call = fresh(call)
            expected = overload(name)(*fresh_call[0], **fresh_call[1])
            for position in takeovers(name, call):
                for chunks in CHUNKS:
                    args, kwargs = fresh(call)
                    into = args[position]
                    result = SPLITS[name].func(*args, **kwargs, chunks=chunks, into=into)
                    assert_same(name, result, expected)
                    first = results_of(result)[0]
                    assert first is not None
                    assert first.data_ptr() == into.data_ptr()
                    for given, left in zip(args, fresh_call[0], strict=True):
                        if isinstance(given, Tensor) and given is not into:
                            assert torch.equal(given, left)
                    found.add(position)
        assert found == set(SPLITS[name].overwrites)

    def test_needs_less_memory(self, name: str) -> None:
        """In chunks, or because a result takes over an argument."""
        for call in CALLS[name](24):
            taken = takeovers(name, call)
            if most_chunks(name, call) < 4 and not taken:
                continue
            args, kwargs = fresh(call)
            options = {"chunks": 8, "into": args[taken[0]] if taken else None}
            whole = peak_bytes(partial(overload(name), *args, **kwargs))
            if peak_bytes(partial(SPLITS[name].func, *args, **kwargs, **options)) < whole:
                return
        pytest.fail("no call needs less memory")

    def test_most_chunks_are_possible_and_one_is_always(self, name: str) -> None:
        for call in CALLS[name](1):
            most = most_chunks(name, call)
            assert most >= 1
            args, kwargs = fresh(call)
            expected = overload(name)(*args, **kwargs)
            args, kwargs = fresh(call)
            assert_same(name, SPLITS[name].func(*args, **kwargs, chunks=most), expected)


def test_splits_have_names_that_a_program_can_show() -> None:
    names = [split.func.__name__ for split in SPLITS.values()]
    assert "split_convolution_backward" in names
    assert "split_batch_norm" in names
    assert len(set(names)) == len(names)


def test_a_softmax_is_cut_along_the_last_dimension_only() -> None:
    x = torch.randn(8, 4)
    assert most_chunks("aten._softmax.default", ((torch.randn(8, 4, 2), 1, False), {})) == 1
    assert most_chunks("aten._softmax.default", ((x, 0, False), {})) == 1
    assert most_chunks("aten._softmax.default", ((x, -2, False), {})) == 1
    assert most_chunks("aten._softmax.default", ((x, -1, False), {})) == 8


def test_a_roll_of_the_first_dimension_is_not_cut() -> None:
    x = torch.randn(8, 4, 4)
    assert most_chunks("aten.roll.default", ((x, [1, 1], [0, 1]), {})) == 1
    assert most_chunks("aten.roll.default", ((x, [1, 1], [-3, 1]), {})) == 1
    assert most_chunks("aten.roll.default", ((x, [1]), {})) == 1


def test_a_layer_norm_over_everything_is_not_cut() -> None:
    x = torch.randn(8, 4)
    assert most_chunks("aten.native_layer_norm.default", ((x, [8, 4], None, None, 1e-5), {})) == 1


def test_batch_norm_of_mixed_layouts_is_not_cut() -> None:
    x, ones = torch.randn(3, 100, 2, 7), torch.ones(100)
    rest = (ones, None, None, ones, ones, True, 1e-5, [True, True, True])
    mixed = (x.contiguous(memory_format=torch.channels_last), x, *rest)
    assert most_chunks("aten.native_batch_norm_backward.default", ((x, x, *rest), {})) == 50
    assert most_chunks("aten.native_batch_norm_backward.default", (mixed, {})) == 1


def test_sums_of_16_bit_parts_are_made_in_32_bits() -> None:
    name = "aten.convolution_backward.default"
    x, grad = torch.ones(64, 4, 8, 8, dtype=torch.bfloat16), torch.ones(64, 4, 8, 8, dtype=torch.bfloat16)
    args = (grad, x, torch.ones(4, 4, 1, 1, dtype=torch.bfloat16), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    _, weight_grad, _ = SPLITS[name].func(*args, [True, True, False], chunks=64)
    assert weight_grad.dtype == torch.bfloat16
    assert (weight_grad == 64 * 64).all()  # 64 is lost beside 16,384 and more in 16 bits, but not in 32
