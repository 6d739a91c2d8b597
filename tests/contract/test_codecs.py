"""What every codec of `CODECS` obeys, and that gates never flip."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.contract.codec_bounds import FLOATS, TYPES, bound_of, shape_for, type_for, values_for
from torch import Tensor

from fedhybrid.codecs import CODECS, Codec, CodecState
from fedhybrid.errors import FedHybridError
from fedhybrid.graph import allocator_events, peak_of

EXACT_VALUES = ("bits", "narrow")  # which take certain values only


def there_and_back(codec: Codec, x: Tensor) -> Tensor:
    return codec.decode(codec.encode(x), x.shape, x.stride(), x.dtype)


def bits_of(x: Tensor) -> list[int]:
    return x.contiguous().view(torch.uint8).flatten().tolist()


def encodable(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Codec, Tensor]:
    """A codec as the table makes it, and a tensor that it takes."""
    codec = CODECS[name]()
    fitting = shape_for(codec, shape)
    return codec, values_for(codec, fitting, type_for(codec, fitting, dtype))


@pytest.mark.parametrize("name", sorted(CODECS))
class TestEveryCodec:
    @settings(max_examples=25)
    @given(data=st.data(), dtype=st.sampled_from(TYPES))
    def test_keeps_shape_strides_and_type_in_the_bytes_it_said(
        self, name: str, data: st.DataObject, dtype: torch.dtype
    ) -> None:
        codec = CODECS[name]()
        dims = len(shape_for(codec, (4, 4, 4)))
        sizes = st.tuples(st.integers(0, 4), *[st.integers(1, 9)] * (dims - 2), st.integers(1, 300 // 6 ** (dims - 3)))
        order = data.draw(st.permutations(range(dims)))
        shape = data.draw(sizes)
        assume(codec.accepts(tuple(shape[i] for i in order), dtype))
        x = values_for(codec, shape, dtype).permute(order)
        code = codec.encode(x)
        assert (code.dtype, code.dim(), code.is_contiguous()) == (torch.uint8, 1, True)
        assert code.numel() == codec.encoded_bytes(x.shape, dtype)
        found = codec.decode(code, tuple(x.shape), x.stride(), dtype)
        assert (found.shape, found.stride(), found.dtype) == (x.shape, x.stride(), dtype)
        assert codec.name == name

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-30, 1e4, 1e30])
    def test_error_is_within_the_stated_bound(self, name: str, dtype: torch.dtype, scale: float) -> None:
        codec, x = encodable(name, (3, 70, 411), dtype)
        if x.dtype.is_floating_point and name != "bits":
            scale = min(scale, torch.finfo(dtype).max / 8)
            x = x * scale
            if name != "sparse":
                x[1] += 3 * scale
        assert_within_bound(codec, x)

    @pytest.mark.parametrize("value", [0.0, 1.0, -3.75, 1e-20, 300.0, 1e30])
    def test_constant_tensors_are_within_the_stated_bound(self, name: str, value: float) -> None:
        codec, x = encodable(name, (2, 10, 60), torch.float32)
        if x.dtype.is_floating_point:
            x.fill_(0.0 if name == "sparse" else value)
            assert_within_bound(codec, x)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("at", [0, 39_998])
    def test_what_is_not_finite_is_refused_or_comes_back(self, name: str, value: float, at: int) -> None:
        codec, x = encodable(name, (4, 100, 100), torch.float32)
        if not x.dtype.is_floating_point:
            return
        x.view(-1)[at] = value
        try:
            found = there_and_back(codec, x).view(-1)[at]
        except FedHybridError as error:
            assert "keep" in str(error).lower()
        else:
            assert torch.equal(found, x.view(-1)[at]) or (math.isnan(found) and math.isnan(value))

    def test_same_seed_gives_same_bytes(self, name: str) -> None:
        codec, x = encodable(name, (5, 16, 2501), torch.float32)
        one, other = CodecState(seed=5), CodecState(seed=5)
        for _ in range(2):
            assert torch.equal(codec.encode(x, one), codec.encode(x.clone(), other))
        assert torch.equal(codec.encode(x), codec.encode(x, CodecState()))

    def test_decodes_as_it_encoded_whatever_the_state_is_by_then(self, name: str) -> None:
        codec, x = encodable(name, (5, 16, 501), torch.float32)
        state = CodecState(seed=1)
        code = codec.encode(x, state)
        before = codec.decode(code, x.shape, x.stride(), x.dtype)
        codec.encode(x.flip(0) if name in EXACT_VALUES else x * 3, state)
        assert torch.equal(codec.decode(code, x.shape, x.stride(), x.dtype), before)

    @pytest.mark.parametrize("gates", [None, (0.0, 6.0)])
    def test_needs_little_memory_beside_input_and_output(self, name: str, gates: tuple[float, float] | None) -> None:
        codec = CODECS[name]() if gates is None or CODECS[name]().lossless else CODECS[name](gates=gates)
        shape = (8, 64, 64, 64)
        x = values_for(codec, shape, type_for(codec, shape, torch.float32))
        there_and_back(codec, x)
        with allocator_events() as encoding:
            code = codec.encode(x)
        with allocator_events() as decoding:
            found = codec.decode(code, x.shape, x.stride(), x.dtype)
        assert found.shape == x.shape
        assert peak_of(encoding) <= code.numel() + x.nbytes // 5
        assert peak_of(decoding) <= x.nbytes + x.nbytes // 5

    def test_needs_the_same_memory_at_every_call_after_the_second(self, name: str) -> None:
        codec, x = encodable(name, (32, 64, 1024), torch.float32)
        state, peaks = CodecState(), set()
        for call in range(5):
            y = x if name in EXACT_VALUES else x * torch.rand(x.shape[1]).view(-1, *[1] * (x.dim() - 2))
            with allocator_events() as events:
                codec.encode(y, state)
            if call >= 2:
                peaks.add(peak_of(events))
        assert len(peaks) == 1

    def test_types_that_it_does_not_take_are_refused_beforehand(self, name: str) -> None:
        codec = CODECS[name]()
        shape = shape_for(codec, (4, 4, 4))
        assert any(codec.accepts(shape, dtype) for dtype in TYPES)
        assert not codec.accepts(shape, torch.complex64)
        assert codec.lossless or not any(codec.accepts(shape, dtype) for dtype in TYPES if dtype not in FLOATS)


def assert_within_bound(codec: Codec, x: Tensor) -> None:
    state = CodecState()
    found = codec.decode(codec.encode(x, state), x.shape, x.stride(), x.dtype)
    if codec.lossless:
        assert bits_of(found) == bits_of(x)
        return
    excess = (found.double() - x.double()).abs() - bound_of(codec, x, state)
    assert excess.max() <= 0
