"""What every codec of `CODECS` obeys, and that gates never flip."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhybrid.codecs import CODECS, Codec, GroupAffine
from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.graph import allocator_events, peak_of

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = st.permutations(range(3))
SHAPES = st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 300))


def values_for(codec: Codec, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if codec.lossless:
        return (torch.rand(shape, generator=generator) < 0.7).to(dtype) * torch.tensor(1 / 0.7, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def there_and_back(codec: Codec, x: Tensor) -> Tensor:
    return codec.decode(codec.encode(x), x.shape, x.stride(), x.dtype)


def bits_of(x: Tensor) -> list[int]:
    return x.contiguous().view(torch.uint8).flatten().tolist()


def error_bounds(codec: GroupAffine, flat: Tensor) -> Tensor:
    """The class's stated bound for each element (its own type's last rounding included)."""
    x, bounds = flat.double(), []
    for group in x.split(codec.group):
        spread, magnitude = group.max() - group.min(), group.abs().max()
        rounding = spread / 510 if codec.bits == 8 else spread / 30 + magnitude / 2**11 + spread / 2**10
        bounds.append(rounding.expand(len(group)))
    return torch.cat(bounds) + x.abs().max() / 2**19 + x.abs() * torch.finfo(flat.dtype).eps * 2


@pytest.mark.parametrize("name", sorted(CODECS))
class TestEveryCodec:
    @settings(deadline=None, max_examples=25)
    @given(shape=SHAPES, order=LAYOUTS, dtype=st.sampled_from(FLOATS))
    def test_keeps_shape_strides_and_type_in_the_bytes_it_said(
        self, name: str, shape: tuple[int, ...], order: list[int], dtype: torch.dtype
    ) -> None:
        codec = CODECS[name]()
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
        codec = CODECS[name]()
        scale = min(scale, torch.finfo(dtype).max / 8)
        x = values_for(codec, (3, 70, 411), dtype) * scale
        x[1] += 3 * scale
        if codec.lossless:
            x = values_for(codec, (3, 70, 411), dtype)
            assert bits_of(there_and_back(codec, x)) == bits_of(x)
            return
        assert isinstance(codec, GroupAffine)
        error = (there_and_back(codec, x).double() - x.double()).abs().flatten()
        assert (error <= error_bounds(codec, x.flatten()) + torch.finfo(dtype).smallest_normal).all()

    def test_same_tensor_gives_same_bytes(self, name: str) -> None:
        codec = CODECS[name]()
        x = values_for(codec, (5, 40_001), torch.float32)
        assert torch.equal(codec.encode(x), codec.encode(x.clone()))

    @pytest.mark.parametrize("gates", [None, (0.0, 6.0)])
    def test_needs_little_memory_beside_input_and_output(self, name: str, gates: tuple[float, float] | None) -> None:
        codec = CODECS[name]() if gates is None or CODECS[name]().lossless else CODECS[name](gates=gates)
        x = values_for(codec, (8, 64, 64, 64), torch.float32)
        there_and_back(codec, x)
        with allocator_events() as encoding:
            code = codec.encode(x)
        with allocator_events() as decoding:
            found = codec.decode(code, x.shape, x.stride(), x.dtype)
        assert found.shape == x.shape
        assert peak_of(encoding) <= code.numel() + x.nbytes // 5
        assert peak_of(decoding) <= x.nbytes + x.nbytes // 5

    def test_types_that_it_does_not_take_are_refused_beforehand(self, name: str) -> None:
        codec = CODECS[name]()
        assert all(codec.accepts((4, 4), dtype) for dtype in FLOATS)
        assert not codec.accepts((4, 4), torch.int64)
        assert not codec.accepts((4, 4), torch.complex64)


GATES = [(0.0, math.inf), (0.0, 6.0), (-3.0, 3.0), (0.1, math.inf), (-math.inf, 0.3)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("gates", GATES)
class TestGates:
    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 1000), dtype=st.sampled_from(FLOATS), spread=st.floats(1e-6, 1e3), clamped=st.booleans())
    def test_never_flip(  # noqa: PLR0917 - two of them are the class's parameters
        self, bits: int, gates: tuple[float, float], seed: int, dtype: torch.dtype, spread: float, clamped: bool
    ) -> None:
        codec = GroupAffine(bits=8 if bits == 8 else 4, gates=gates)
        x = torch.randn(3, 517, generator=torch.Generator().manual_seed(seed)).mul(spread).to(dtype)
        x = x.clamp(*gates) if clamped else x
        found = there_and_back(codec, x).float()
        low, high = torch.tensor(gates).tolist()  # kernels compare with 32-bit floats
        assert torch.equal(found <= low, x.float() <= low)
        assert torch.equal(found >= high, x.float() >= high)

    def test_what_lies_on_a_gate_comes_back_exactly(self, bits: int, gates: tuple[float, float]) -> None:
        codec = GroupAffine(bits=8 if bits == 8 else 4, gates=gates)
        x = torch.randn(64, 1000).mul(4).clamp(*gates)
        found = there_and_back(codec, x)
        outside = (x <= gates[0]) | (x >= gates[1])
        assert outside.any()
        assert torch.equal(found[outside], x[outside])

    def test_bring_values_closer_never_further(self, bits: int, gates: tuple[float, float]) -> None:
        width, x = 8 if bits == 8 else 4, torch.randn(100_001)
        plain = (there_and_back(GroupAffine(bits=width), x) - x).abs()
        gated = (there_and_back(GroupAffine(bits=width, gates=gates), x) - x).abs()
        assert (gated <= plain + 1e-7).all()


@pytest.mark.parametrize("numel", [0, 1, 8, 4097, 300_001])
def test_bits_of_booleans_come_back(numel: int) -> None:
    codec, mask = CODECS["bits"](), torch.rand(numel) < 0.3
    assert codec.accepts((4, 4), torch.bool)
    assert codec.encoded_bytes((numel,), torch.bool) == 8 + math.ceil(numel / 8)
    assert torch.equal(there_and_back(codec, mask), mask)


@pytest.mark.parametrize("other", [-2.5, math.inf, 1e-45, math.nan, -0.0])
def test_bits_of_any_one_value_come_back(other: float) -> None:
    x = torch.tensor(other).where(torch.rand(999) < 0.5, torch.tensor(0.0))
    assert bits_of(there_and_back(CODECS["bits"](), x)) == bits_of(x)


@pytest.mark.parametrize("third", [1.0000001, 0.5, -1.0, -0.0, math.nan, 1e-45])
@pytest.mark.parametrize("at", [0, 17, 40_000])
def test_bits_refuse_a_third_value_wherever_it_is(third: float, at: int) -> None:
    x = torch.ones(40_001)
    x[::2], x[at] = 0.0, third
    with pytest.raises(FedHybridError, match="holds a third"):
        CODECS["bits"]().encode(x)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 39_999])
def test_affine_refuses_what_is_not_finite(bits: int, value: float, at: int) -> None:
    x = torch.randn(40_000)
    x[at] = value
    with pytest.raises(FedHybridError, match="nan or infinity"):
        CODECS[f"affine-{bits}"]().encode(x)


def test_constant_groups_come_back() -> None:
    for value in (0.0, 1.0, -3.75, 1e-20, 300.0):
        x = torch.full((1000,), value)
        assert torch.allclose(there_and_back(CODECS["affine-8"](), x), x, rtol=1e-6, atol=0)
        assert torch.allclose(there_and_back(CODECS["affine-4"](), x), x, rtol=2**-10, atol=0)


def test_all_problems_of_an_affine_codec_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        GroupAffine(bits=5, group=100, gates=(1.0, 1.0))  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3
