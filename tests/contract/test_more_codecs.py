"""Gates, randomness and options of codecs beside affine ones and bit masks, with compiled kernels and without."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.codec_bounds import FLOATS, bound_of, shape_for, values_for
from torch import Tensor

from fedhybrid.codecs import CODECS, Codec, CodecState, kernels
from fedhybrid.codecs.rows import RowLayout, row_layout, rows_decode, rows_encode, rows_range, run_bytes
from fedhybrid.errors import ConfigError, FedHybridError

ROUNDING = ("channel-mix", "division", "mesa")  # at random
GATED = (*ROUNDING, "bf16", "sparse")
GATES = [(0.0, math.inf), (0.0, 6.0), (-3.0, 3.0), (-math.inf, 0.3)]


@pytest.fixture(params=["on", "off"], autouse=True)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with compiled kernels, where there are some, and without."""
    monkeypatch.setenv("FEDHYBRID_KERNELS", request.param)
    if request.param == "on" and not kernels.available():
        pytest.skip("no compiled kernels here")


def there_and_back(codec: Codec, x: Tensor, state: CodecState | None = None) -> Tensor:
    return codec.decode(codec.encode(x, state), x.shape, x.stride(), x.dtype)


def assert_gates_hold(found: Tensor, x: Tensor, gates: tuple[float, float]) -> None:
    low, high = torch.tensor(gates).tolist()  # kernels compare with 32-bit floats
    assert torch.equal(found.float() <= low, x.float() <= low)
    assert torch.equal(found.float() >= high, x.float() >= high)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("dtype", FLOATS)
class TestGates:
    @pytest.mark.parametrize("spread", [1e-30, 1.0])
    @pytest.mark.parametrize("clamped", [False, True])
    def test_never_flip(
        self, name: str, gates: tuple[float, float], dtype: torch.dtype, spread: float, clamped: bool
    ) -> None:
        codec = CODECS[name](gates=gates)
        x = values_for(codec, shape_for(codec, (3, 70, 41)), dtype).float().mul(spread).to(dtype)
        x = x.clamp(*gates) if clamped else x
        found = there_and_back(codec, x)
        assert_gates_hold(found, x, gates)
        if clamped:
            outside = (x <= gates[0]) | (x >= gates[1])
            assert torch.equal(found[outside], x[outside])

    def test_bring_values_closer_never_further(self, name: str, gates: tuple[float, float], dtype: torch.dtype) -> None:
        codec = CODECS[name]()
        x = values_for(codec, shape_for(codec, (4, 70, 411)), dtype)
        plain = (there_and_back(codec, x).double() - x.double()).abs()
        gated = (there_and_back(CODECS[name](gates=gates), x).double() - x.double()).abs()
        assert (gated <= plain + 1e-7).all()


class TestPositive:
    """`clamped` channel-mix: a gate at 0 costs no bit."""

    @settings(max_examples=15)
    @given(
        seed=st.integers(0, 1000), spread=st.sampled_from([1e-40, 1e-30, 1e-7, 1e-3, 1.0, 1e4, 1e30]),
        dtype=st.sampled_from(FLOATS), bits=st.sampled_from([2.0, 3.0, 4.0]), order=st.permutations(range(4)),
    )  # fmt: skip
    def test_zeros_stay_zeros_and_the_rest_positive(
        self, seed: int, spread: float, dtype: torch.dtype, bits: float, order: list[int]
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((4, 8, 6, 35), generator=generator).relu() * torch.rand((1, 8, 1, 1), generator=generator)
        x[0, :, 0, :4] = 2.0**-140  # far below every step
        x = (x.double() * min(spread, torch.finfo(dtype).max / 8)).to(dtype).permute(order)
        codec = CODECS["channel-mix"](gates=(0.0, math.inf), clamped=True, mean_bits=bits)
        state = CodecState(seed=seed)
        found = there_and_back(codec, x, state)
        assert torch.equal(found > 0, x > 0)
        assert (found >= 0).all()
        assert ((found.double() - x.double()).abs() <= bound_of(codec, x, state)).all()

    def test_takes_no_bit_for_a_gate_at_zero_and_one_for_the_other(self) -> None:
        shape, plain = (8, 16, 32, 32), CODECS["channel-mix"]()
        one = CODECS["channel-mix"](gates=(0.0, math.inf), clamped=True)
        two = CODECS["channel-mix"](gates=(0.0, 6.0), clamped=True)
        assert one.encoded_bytes(shape, torch.float32) == plain.encoded_bytes(shape, torch.float32)
        assert two.encoded_bytes(shape, torch.float32) == plain.encoded_bytes(shape, torch.float32) + 8 + 16 * 1024
        x = (torch.randn(shape) * 6).clamp(0, 6)
        found = there_and_back(two, x)
        assert_gates_hold(found, x, (0.0, 6.0))
        assert torch.equal(found[x == 6], x[x == 6])


@pytest.mark.parametrize("name", ROUNDING)
class TestRandomRounding:
    def test_is_right_on_average(self, name: str) -> None:
        codec, state = CODECS[name](), CodecState(seed=7)
        x = values_for(codec, shape_for(codec, (4, 28, 60)), torch.float32)
        draws = torch.stack([there_and_back(codec, x, state).double() - x for _ in range(256)])
        one, mean = draws.square().mean().sqrt(), draws.mean(0).square().mean().sqrt()
        assert mean < 1.15 * one / 16  # bias would add to it
        assert mean > 0.85 * one / 16

    def test_errors_of_a_tensor_do_not_add_up(self, name: str) -> None:
        codec, state = CODECS[name](), CodecState(seed=8)
        x = values_for(codec, shape_for(codec, (16, 28, 256)), torch.float32)
        sums = [(there_and_back(codec, x, state).double() - x) for _ in range(100)]
        one = torch.stack([e.square().sum() for e in sums]).mean()
        assert torch.stack([e.sum().square() for e in sums]).mean() < 1.6 * one

    def test_every_encoding_draws_anew(self, name: str) -> None:
        codec, state = CODECS[name](), CodecState(seed=1)
        x = values_for(codec, shape_for(codec, (4, 28, 60)), torch.float32)
        codes = [codec.encode(x, state), codec.encode(x, state), codec.encode(x, CodecState(seed=2))]
        assert state.calls == 2
        assert not torch.equal(codes[0], codes[1])
        assert not torch.equal(codes[0], codes[2])

    @pytest.mark.parametrize("value", [2e38, -2e38])
    def test_numbers_too_large_for_their_range_are_refused(self, name: str, value: float) -> None:
        codec = CODECS[name]()
        x = values_for(codec, shape_for(codec, (4, 28, 60)), torch.float32)
        x.view(-1)[:2] = torch.tensor([value, -value])
        with pytest.raises(FedHybridError, match=f"the codec '{name}' stores finite numbers"):
            codec.encode(x)


LAYOUTS = [(1, 1, 1), (3, 5, 7), (1, 3, 70_001), (33, 7, 1), (5, 2, 30_001), (64, 64, 49), (20, 3, 4000), (7, 600, 3),
           (5000, 6, 1), (3, 1, 30_003)]  # fmt: skip


@pytest.mark.parametrize("layout", [RowLayout(*sizes) for sizes in LAYOUTS])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", [None, 3])
def test_rows_of_every_width_and_layout_come_back(layout: RowLayout, dtype: torch.dtype, seed: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(layout, generator=generator).to(dtype).view(-1)
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8)[torch.randint(0, 4, (layout.rows,), generator=generator)]
    low, high, magnitude = rows_range("none", x, layout)
    assert torch.equal(low, x.view(layout).float().amin((0, 2)))
    assert magnitude == float(x.abs().max())
    step = ((high - low) / (2 ** bits.float() - 1)).clamp_min(1e-30)
    offsets, end = torch.zeros(layout.rows, dtype=torch.int64), 3
    for width in (8, 1, 4, 2):
        for row in (bits == width).nonzero().flatten().tolist():
            offsets[row], end = end, end + run_bytes(layout.length, width)
    code = torch.full((end + 5,), 77, dtype=torch.uint8)
    rows_encode(x, layout, bits, low, step, offsets, seed, code)
    assert (code[:3] == 77).all()
    assert (code[end:] == 77).all()
    found = torch.empty_like(x)
    rows_decode(code, layout, bits, low, step, offsets, found)
    error = (found.double() - x.double()).abs().view(layout)
    bound = step.double()[None, :, None] * (1 if seed else 0.5) + x.abs().max() * (torch.finfo(dtype).eps + 1e-6) * 2
    assert (error <= bound).all()


@settings(max_examples=50)
@given(shape=st.tuples(*[st.integers(1, 5)] * 4), order=st.permutations(range(4)), dim=st.integers(0, 3))
def test_row_layouts_describe_memory(shape: tuple[int, ...], order: list[int], dim: int) -> None:
    x = torch.arange(math.prod(shape)).view(shape).permute(order)
    outer, rows, cols = row_layout(x.shape, x.stride(), dim)
    seen = x.as_strided((x.numel(),), (1,)).view(outer, rows, cols)
    if x.shape[dim] > 1:
        for row in range(rows):
            assert set(seen[:, row].flatten().tolist()) == set(x.select(dim, row).flatten().tolist())


@pytest.mark.parametrize("limit", [200, 256, 257, 40_000, 65_536, 65_537, 2**31])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_whole_numbers_below_a_limit_come_back(limit: int, dtype: torch.dtype) -> None:
    codec = CODECS["narrow"](limit=limit)
    x = torch.randint(0, limit, (70_001,), dtype=torch.int64).to(dtype)
    x[:2] = torch.tensor([0, limit - 1])
    assert torch.equal(there_and_back(codec, x), x)
    size = 1 if limit <= 256 else 2 if limit <= 65_536 else 4
    assert codec.encoded_bytes(x.shape, dtype) == size * x.numel()


@pytest.mark.parametrize(("value", "at"), [(-1, 0), (4096, 69_999), (2**40, 3)])
def test_whole_numbers_beyond_the_limit_are_refused(value: int, at: int) -> None:
    x = torch.zeros(70_000, dtype=torch.int64)
    x[at] = value
    with pytest.raises(FedHybridError, match=f"from 0 to 4095.*holds {value}"):
        CODECS["narrow"](limit=4096).encode(x)


class TestSparse:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 99), numel=st.integers(0, 40_000), dtype=st.sampled_from(FLOATS))
    def test_what_fits_comes_back_bit_for_bit(self, seed: int, numel: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(numel, generator=generator).to(dtype)
        x[torch.rand(numel, generator=generator) < 0.7] = 0.0
        x[:3] = torch.tensor([-0.0, math.nan, math.inf])[:numel]
        codec = CODECS["sparse"](density_ratio=0.45)
        if (x.view(torch.int32 if dtype == torch.float32 else torch.int16) != 0).sum() <= math.ceil(0.45 * numel):
            integers = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(there_and_back(codec, x).view(integers), x.view(integers))

    def test_what_does_not_fit_becomes_its_mean_and_zeros_stay(self) -> None:
        x = torch.randn(100_000, generator=torch.Generator().manual_seed(1)).relu()
        codec = CODECS["sparse"](density_ratio=0.2)
        found = there_and_back(codec, x)
        where = x.nonzero().flatten()
        assert torch.equal(found[where[:20_000]], x[where[:20_000]])
        rest = found[where[20_000:]]
        assert (rest == rest[0]).all()
        assert math.isclose(float(rest[0]), float(x[where[20_000:]].double().mean()), rel_tol=1e-6)
        assert torch.equal(found > 0, x > 0)

    def test_takes_its_share_whatever_the_values(self) -> None:
        codec = CODECS["sparse"](density_ratio=0.25)
        assert codec.encoded_bytes((2**20,), torch.float32) == 2**18 * 4 + 2**17 + 64 * 4 + 4
        for x in (torch.zeros(2**20), torch.ones(2**20)):
            assert codec.encode(x).numel() == codec.encoded_bytes(x.shape, x.dtype)


class TestChannelMix:
    @settings(max_examples=40)
    @given(
        rows=st.integers(1, 40), length=st.integers(128, 700), mean_bits=st.floats(2, 8), seed=st.integers(0, 99),
    )  # fmt: skip
    def test_widths_fit_into_the_bytes_of_the_mean(self, rows: int, length: int, mean_bits: float, seed: int) -> None:
        codec, state = CODECS["channel-mix"](mean_bits=mean_bits, channel_dim=0), CodecState()
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((rows, length), generator=generator) * torch.rand((rows, 1), generator=generator) ** 4
        found = there_and_back(codec, x, state)
        widths = state.facts["widths"]
        budget_bytes = rows * math.ceil(length * mean_bits / 8)
        assert set(widths.tolist()) <= {2, 4, 8}
        assert sum(run_bytes(length, int(width)) for width in widths) <= budget_bytes
        assert codec.encoded_bytes(x.shape, x.dtype) == budget_bytes + 4 * rows + math.ceil(rows / 4) + 4
        assert ((found - x).abs() <= bound_of_rows(x, widths)).all()

    def test_wide_channels_get_more_bits(self) -> None:
        x = torch.randn(8, 4, 16, 16) * torch.tensor([0.01, 10.0, 1.0, 0.1]).view(1, 4, 1, 1)
        state = CodecState()
        CODECS["channel-mix"]().encode(x, state)
        assert state.facts["widths"].tolist() == [2, 8, 4, 2]

    def test_weights_count(self) -> None:
        x = torch.randn(8, 4, 16, 16)
        state = CodecState(facts={"weights": np.array([1e-6, 1.0, 1e-3, 1e-6])})
        CODECS["channel-mix"]().encode(x, state)
        assert state.facts["widths"].tolist() == [2, 8, 4, 2]

    def test_widths_are_refreshed_and_ranges_always_new(self) -> None:
        codec, state = CODECS["channel-mix"](refresh_steps=3), CodecState()
        wide_first = torch.randn(8, 2, 16, 16) * torch.tensor([10.0, 0.1]).view(1, 2, 1, 1)
        codec.encode(wide_first, state)
        assert state.facts["widths"].tolist() == [4, 4]
        codec = CODECS["channel-mix"](refresh_steps=3, mean_bits=5)
        state, seen = CodecState(), []
        for _ in range(6):
            x = wide_first if state.calls == 0 else wide_first.flip(1)
            found = there_and_back(codec, x, state)
            seen.append(state.facts["widths"].tolist())
            assert ((found - x).abs() <= bound_of(codec, x, state)).all()
        assert seen == [[8, 2]] * 3 + [[2, 8]] * 3

    @pytest.mark.parametrize("offset", [0.0, 100.0, -1e5])
    def test_channels_far_from_zero_keep_their_range(self, offset: float) -> None:
        codec, state = CODECS["channel-mix"](mean_bits=8), CodecState()
        x = torch.randn(8, 4, 16, 16) + offset
        error = (there_and_back(codec, x, state) - x).abs().max()
        assert error <= (9 + abs(offset) / 2**10) / 255 * 1.01 + abs(offset) * 2.0**-22


def bound_of_rows(x: Tensor, widths: np.ndarray) -> Tensor:
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    magnitude = torch.maximum(-low, high)
    codes = 2.0 ** torch.from_numpy(widths).float().view(-1, 1) - 1
    return 1.003 * (high - low + magnitude / 2**10) / codes + 2.0**-22 * x.abs().max()


class TestMesa:
    def test_ranges_follow_and_what_lies_beyond_is_clamped(self) -> None:
        codec, state = CODECS["mesa"](groups=2, decay=0.9), CodecState()
        first = torch.rand(4, 2, 50, 60) * 2 - 1
        there_and_back(codec, first, state)
        before = state.facts["ranges"].copy()
        found = there_and_back(codec, 2 * first, state)
        assert np.allclose(state.facts["ranges"], 1.1 * before, rtol=1e-5)
        spread, low = state.facts["ranges"]
        assert (found.amax((0, 2, 3)) <= torch.from_numpy(low + spread) + 1e-5).all()
        inside = (2 * first).clamp(torch.tensor(low).view(2, 1, 1), torch.tensor(low + spread).view(2, 1, 1))
        assert ((found - inside).abs() <= torch.tensor(spread).view(2, 1, 1) / 255 + 1e-5).all()

    @pytest.mark.parametrize(
        ("shape", "groups"), [((4, 6, 50, 8), 6), ((4, 50, 48), 6), ((40, 48), 6), ((4, 7, 9, 9), 1)]
    )
    def test_takes_one_byte_an_element_and_eight_a_group(self, shape: tuple[int, ...], groups: int) -> None:
        codec = CODECS["mesa"](groups=6)
        assert codec.encoded_bytes(shape, torch.float32) == math.prod(shape) + 8 * groups


class TestDivision:
    @pytest.mark.parametrize(
        "shape", [(2, 3, 8, 8), (2, 3, 9, 17), (3, 5, 2, 3), (1, 2, 30, 5), (2, 2, 7, 1), (2, 130, 33, 33)]
    )
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_maps_of_every_size_come_back(self, shape: tuple[int, ...], channels_last: bool, bits: int) -> None:
        x = torch.randn(shape)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        codec, state = CODECS["division"](bits=bits), CodecState()
        assert ((there_and_back(codec, x, state) - x).abs() <= bound_of(codec, x, state)).all()

    @pytest.mark.parametrize("shape", [(4, 8, 1, 16), (4, 8, 64), (32, 10), (2, 2, 2, 8, 8)])
    def test_is_for_maps_only(self, shape: tuple[int, ...]) -> None:
        assert not CODECS["division"]().accepts(shape, torch.float32)


@pytest.mark.parametrize(
    ("name", "options", "problems"),
    [
        ("bf16", {"gates": (1.0, 1.0)}, 1),
        ("channel-mix", {"mean_bits": 1.5, "refresh_steps": 0}, 2),
        ("division", {"block": 0, "bits": 3}, 2),
        ("mesa", {"groups": 0, "decay": 1.0}, 2),
        ("narrow", {"limit": 0}, 1),
        ("sparse", {"density_ratio": 1.5}, 1),
    ],
)
def test_all_problems_are_told_at_once(name: str, options: dict[str, object], problems: int) -> None:
    with pytest.raises(ConfigError) as caught:
        CODECS[name](**options)
    assert len(caught.value.problems) == problems
