"""Affine codecs and bits, compiled and not: bounds, gates that never flip, randomness, what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.codec_bounds import FLOATS, bound_of
from torch import Tensor

from fedhybrid.codecs import CODECS, Codec, CodecState, GroupAffine, kernels
from fedhybrid.errors import ConfigError, FedHybridError

WIDTHS = (8, 4, 2)
GATES = [(0.0, math.inf), (0.0, 6.0), (-3.0, 3.0), (0.1, math.inf), (-math.inf, 0.3)]


@pytest.fixture(params=["compiled", "plain"], autouse=True, scope="module")
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs with the kernels and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDHYBRID_KERNELS", "on" if request.param == "compiled" else "off")
        if request.param == "compiled" and not kernels.available():
            pytest.skip("the kernels were not compiled")
        yield request.param


def there_and_back(codec: Codec, x: Tensor, seed: int = 0) -> Tensor:
    code = codec.encode(x, CodecState(seed=seed))
    assert code.numel() == codec.encoded_bytes(x.shape, x.dtype)
    return codec.decode(code, x.shape, x.stride(), x.dtype)


def bits_of(x: Tensor) -> list[int]:
    return x.contiguous().view(torch.uint8).flatten().tolist()


def assert_same_sides(found: Tensor, x: Tensor, gates: tuple[float, float]) -> None:
    low, high = torch.tensor(gates).tolist()  # kernels compare with 32-bit floats
    assert torch.equal(found.float() <= low, x.float() <= low)
    assert torch.equal(found.float() >= high, x.float() >= high)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-30, 1e-41, 1e4, 1e30, 3e38])
def test_errors_are_within_the_stated_bound(bits: int, dtype: torch.dtype, scale: float) -> None:
    scale = min(scale, torch.finfo(dtype).max)
    x = (torch.rand(5, 1027, dtype=torch.float64) * 2 - 1).mul(scale).clamp(-scale, scale).to(dtype)
    x[1], x[2, ::3] = x[1] / 9 + scale / 2, 0.0
    for rounding in ("nearest", "stochastic"):
        for group in (256, 16):
            codec = GroupAffine(bits=bits, rounding=rounding, group=group)
            excess = (there_and_back(codec, x).double() - x.double()).abs() - bound_of(codec, x, CodecState())
            assert excess.max() <= 0


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("gates", GATES)
class TestGates:
    @settings(max_examples=12)
    @given(
        seed=st.integers(0, 1000), dtype=st.sampled_from(FLOATS), spread=st.floats(1e-6, 1e3),
        form=st.sampled_from(["planes", "clamped to planes", "clamped"]),
        rounding=st.sampled_from(["nearest", "stochastic"]), group=st.sampled_from([8, 256]),
    )  # fmt: skip
    def test_never_flip(  # noqa: PLR0917 - two of them are the class's parameters
        self, bits: int, gates: tuple[float, float], seed: int, dtype: torch.dtype, spread: float, form: str,
        rounding: str, group: int,
    ) -> None:  # fmt: skip
        codec = GroupAffine(bits=bits, gates=gates, clamped=form == "clamped", rounding=rounding, group=group)
        x = torch.randn(3, 517, generator=torch.Generator().manual_seed(seed)).mul(spread).to(dtype)
        x = x if form == "planes" else x.clamp(*gates)
        assert_same_sides(there_and_back(codec, x, seed), x, gates)

    @settings(max_examples=12)
    @given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
    def test_never_flip_whatever_the_numbers(self, bits: int, gates: tuple[float, float], values: list[float]) -> None:
        x = torch.tensor(values).repeat(20)
        assert_same_sides(there_and_back(GroupAffine(bits=bits, gates=gates), x), x, gates)
        x = x.clamp(*gates)
        assert_same_sides(there_and_back(GroupAffine(bits=bits, gates=gates, clamped=True), x), x, gates)

    def test_what_a_clamp_left_on_a_gate_comes_back_exactly(self, bits: int, gates: tuple[float, float]) -> None:
        codec = GroupAffine(bits=bits, gates=gates, clamped=True)
        x = torch.randn(64, 1000).mul(4).clamp(*gates)
        found = there_and_back(codec, x)
        outside = (x <= gates[0]) | (x >= gates[1])
        assert outside.any()
        assert torch.equal(found[outside], x[outside])

    def test_of_clamped_tensors_cost_nothing_and_little_precision(self, bits: int, gates: tuple[float, float]) -> None:
        codec, x = GroupAffine(bits=bits, gates=gates, clamped=True), torch.randn(9, 2048).clamp(*gates)
        assert codec.encoded_bytes(x.shape, x.dtype) == GroupAffine(bits=bits).encoded_bytes(x.shape, x.dtype)
        groups, found = x.view(-1, 256), there_and_back(codec, x).view(-1, 256)
        levels = 2**bits - 1 - (0 if not kernels.available() else sum(map(math.isfinite, gates)))
        inside = (groups > gates[0]) & (groups < gates[1])
        low = groups.where(inside, math.inf).amin(1, keepdim=True)
        high = groups.where(inside, -math.inf).amax(1, keepdim=True)
        half_a_step = (high - low) / (2 * levels)
        if not kernels.available():  # a grid from gate to gate, and twice that beside the gate
            half_a_step = (groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)) / levels
        assert ((found - groups).abs() <= half_a_step * (1 + 2**-10) + 2**-20 * groups.abs().max()).all()

    def test_in_planes_bring_values_closer_never_further(self, bits: int, gates: tuple[float, float]) -> None:
        x = torch.randn(100_001)
        plain = (there_and_back(GroupAffine(bits=bits), x) - x).abs()
        gated = (there_and_back(GroupAffine(bits=bits, gates=gates), x) - x).abs()
        assert (gated <= plain + 1e-7).all()


@pytest.mark.parametrize("bits", WIDTHS)
class TestStochasticRounding:
    def codec(self, bits: int, gates: tuple[float, float] | None = None) -> GroupAffine:
        if not kernels.available():
            pytest.skip("rounds to nearest")
        return GroupAffine(bits=bits, rounding="stochastic", gates=gates, clamped=gates is not None)

    def test_is_right_on_average(self, bits: int) -> None:
        codec, x = self.codec(bits), torch.randn(5000, generator=torch.Generator().manual_seed(0))
        times = 400
        state, total = CodecState(seed=3), torch.zeros_like(x, dtype=torch.float64)
        for _ in range(times):
            total += codec.decode(codec.encode(x, state), x.shape, x.stride(), x.dtype)
        step = torch.cat([(g.max() - g.min()).expand(len(g)) for g in x.split(256)]) / (2**bits - 1)
        scaled = (total / times - x) / step  # standard deviation at most 1 / 2 / sqrt(times)
        assert scaled.abs().max() < 6 * 0.5 / times**0.5
        assert abs(float(scaled.mean())) < 5 * 0.5 / (times * len(x)) ** 0.5 + 2**-12

    def test_of_neighbours_is_independent(self, bits: int) -> None:
        x = torch.rand(1 << 18, generator=torch.Generator().manual_seed(0))
        error = there_and_back(self.codec(bits), x).sub(x).view(-1, 256)
        error = (error - error.mean()) / error.std()
        for distance in (1, 16, 32, 48, 64, 128):
            together = float((error[:, distance:] * error[:, :-distance]).mean())
            assert abs(together) < 5 / error[:, distance:].numel() ** 0.5
        assert abs(float((error[1:] * error[:-1]).mean())) < 5 / error[1:].numel() ** 0.5

    def test_differs_from_call_to_call_and_by_seed_alone(self, bits: int) -> None:
        codec, x = self.codec(bits), torch.randn(70_000)
        one, same, other = CodecState(seed=1), CodecState(seed=1), CodecState(seed=2)
        first = codec.encode(x, one)
        assert torch.equal(first, codec.encode(x, same))
        assert not torch.equal(first, codec.encode(x, one))
        assert not torch.equal(first, codec.encode(x, other))

    def test_leaves_gates_alone(self, bits: int) -> None:
        x = torch.randn(9000).relu()
        assert_same_sides(there_and_back(self.codec(bits, (0.0, math.inf)), x), x, (0.0, math.inf))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 39_999])
def test_affine_refuses_what_is_not_finite(bits: int, value: float, at: int) -> None:
    x = torch.randn(40_000)
    x[at] = value
    for gates, clamped in ((None, False), ((0.0, 6.0), False), ((-1e30, 1e30), True), ((0.0, math.inf), True)):
        with pytest.raises(FedHybridError, match="nan or infinity"):
            GroupAffine(bits=bits, gates=gates, clamped=clamped).encode(x)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.75, 1e-20, 300.0, 1e-44, 3.4e38])
def test_constant_groups_come_back(value: float) -> None:
    x = torch.full((1000,), value)
    for bits in WIDTHS:
        coarse = bits < 8 and not kernels.available()
        found = there_and_back(GroupAffine(bits=bits), x)
        assert torch.allclose(found, x, rtol=2**-10 if coarse else 1e-6, atol=1e-38)


@pytest.mark.parametrize("numel", [0, 1, 7, 255, 256, 257, 70_001])
@pytest.mark.parametrize("gates", [None, (0.0, 6.0)])
def test_any_number_of_elements(numel: int, gates: tuple[float, float] | None) -> None:
    for bits in WIDTHS:
        x = torch.randn(numel)
        error = there_and_back(GroupAffine(bits=bits, gates=gates), x) - x
        assert not numel or error.abs().max() <= 8 / (2**bits - 1)


def test_both_paths_have_codes_of_one_length() -> None:
    codecs = [
        GroupAffine(bits=b, group=g, gates=gates, clamped=c)
        for b in WIDTHS for g in (8, 256) for gates in GATES for c in (False, True)
    ]  # fmt: skip
    for codec in codecs:
        for numel in (1, 8, 777):
            assert codec.encode(torch.zeros(numel)).numel() == codec.encoded_bytes((numel,), torch.float32)


def test_all_problems_of_an_affine_codec_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        GroupAffine(bits=5, group=100, gates=(1.0, 1.0), rounding="down")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="clamped needs gates"):
        GroupAffine(clamped=True)


@pytest.mark.parametrize("numel", [0, 1, 8, 511, 512, 513, 4097, 300_001])
def test_bits_of_booleans_come_back(numel: int) -> None:
    codec, mask = CODECS["bits"](), torch.rand(numel) < 0.3
    assert codec.accepts((4, 4), torch.bool)
    assert codec.encoded_bytes((numel,), torch.bool) == 8 + math.ceil(numel / 8)
    assert torch.equal(there_and_back(codec, mask), mask)


@pytest.mark.parametrize("other", [-2.5, math.inf, 1e-45, math.nan, -0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_bits_of_any_one_value_come_back(other: float, dtype: torch.dtype) -> None:
    x = torch.tensor(other, dtype=dtype).where(torch.rand(9999) < 0.5, torch.tensor(0.0, dtype=dtype))
    assert bits_of(there_and_back(CODECS["bits"](), x)) == bits_of(x)


@pytest.mark.parametrize("third", [1.0000001, 0.5, -1.0, -0.0, math.nan, 1e-45])
@pytest.mark.parametrize("at", [0, 17, 40_000])
def test_bits_refuse_a_third_value_wherever_it_is(third: float, at: int) -> None:
    x = torch.ones(40_001)
    x[::2], x[at] = 0.0, third
    with pytest.raises(FedHybridError, match="holds a third"):
        CODECS["bits"]().encode(x)
