"""The compiled kernels compute what they say, and every level and number of threads writes the same bytes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from tests.contract.codec_bounds import FLOATS
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fedhybrid.codecs import CodecState, GroupAffine, kernels
from fedhybrid.errors import ConfigError

LEVELS = ("base", "avx2", "avx512")
ROWS = [(4, 7, 49), (3, 5, 1024), (300, 40, 1), (1, 3, 5), (2, 33, 300), (600, 17, 3), (9, 16, 1)]
MAPS = [(6, 32, 32, 8), (3, 7, 7, 7), (5, 14, 14, 8), (2, 3, 2500, 8), (4, 5, 9, 4), (2, 9, 11, 1100)]


@pytest.fixture(autouse=True)
def best_level() -> Iterator[None]:
    if not kernels.available():
        pytest.skip("the kernels were not compiled")
    yield
    kernels.use_level("")


def levels() -> Iterator[str]:
    """Those that this processor has, each in force while it is the loop's."""
    for level in LEVELS:
        if kernels.use_level(level):
            yield level


def rows_of(x: Tensor, seed: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(code, decoded, steps) of rows of various widths."""
    outer, rows, cols = x.shape
    low, high = torch.empty(rows), torch.empty(rows)
    assert kernels.rows_range(x, outer, rows, cols, low, high)
    assert torch.equal(low, x.float().amin((0, 2)))
    assert torch.equal(high, x.float().amax((0, 2)))
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8).repeat(-(-rows // 4))[:rows]
    lengths = [math.ceil(outer * cols * int(b) / 8) for b in bits]
    offsets = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    step = (high - low) / (2 ** bits.float() - 1)
    code, out = torch.full((sum(lengths) + 64,), 77, dtype=torch.uint8), torch.empty_like(x)
    kernels.rows_encode(x, outer, rows, cols, bits, low, step, offsets, seed, code)
    assert (code[sum(lengths) :] == 77).all()
    kernels.rows_decode(code, outer, rows, cols, bits, low, step, offsets, out)
    return code, out, step


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", [None, 5])
def test_rows(shape: tuple[int, int, int], dtype: torch.dtype, seed: int | None) -> None:
    x = (torch.randn(shape) * torch.rand(shape[1], 1) * 5 + torch.randn(shape[1], 1)).to(dtype)
    found = [rows_of(x, seed) for _ in levels()]
    assert all(torch.equal(code, found[0][0]) and torch.equal(out, found[0][1]) for code, out, _ in found)
    _, out, step = found[0]
    bound = step[:, None] * (0.5 if seed is None else 1) * (1 + 2**-10) + 1e-5 * x.float().abs().max()
    last_rounding = (x.float().abs() + step[:, None]) * torch.finfo(dtype).eps
    assert ((out.float() - x.float()).abs() <= bound + last_rounding).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", ROWS)
def test_rows_tell_what_is_not_finite(value: float, shape: tuple[int, int, int]) -> None:
    x, (low, high) = torch.randn(shape), torch.empty(2, shape[1])
    x.view(-1)[-1] = value
    assert not kernels.rows_range(x, *shape, low, high)


def test_rows_on_average() -> None:
    x, total, times = torch.rand(8, 4, 100), torch.zeros(8, 4, 100), 300
    bits, low, step = torch.full((4,), 2, dtype=torch.uint8), torch.zeros(4), torch.full((4,), 1 / 3)
    code, out, offsets = torch.empty(4 * 200, dtype=torch.uint8), torch.empty_like(x), torch.arange(4) * 200
    for seed in range(times):
        kernels.rows_encode(x, 8, 4, 100, bits, low, step, offsets, seed, code)
        kernels.rows_decode(code, 8, 4, 100, bits, low, step, offsets, out)
        total += out
    assert (total / times - x).abs().max() < 6 * 0.5 / 3 / times**0.5


@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_maps(layout: tuple[int, int, int, int], dtype: torch.dtype, bits: int) -> None:
    maps, height, width, block = layout
    x = torch.randn(maps, height, width).add(2).to(dtype)
    down, across, number_bytes = -(-height // block), -(-width // block), -(-height * width * bits // 8)
    ends = torch.tensor([0, 2 * down * across, number_bytes, 2, 2]).cumsum(0).mul(maps).tolist()
    found = []
    for _ in levels():
        code, out = torch.full((ends[-1] + 8,), 77, dtype=torch.uint8), torch.empty_like(x)
        assert kernels.maps_encode(x, maps, height, width, block, bits, 1e-30, 3, code)
        assert (code[ends[-1] :] == 77).all()
        kernels.maps_decode(code, maps, height, width, block, bits, out)
        found.append((code, out))
    assert all(torch.equal(code, found[0][0]) and torch.equal(out, found[0][1]) for code, out in found)
    code, out = found[0]
    averages, scale, low = (
        code[ends[i] : ends[i + 1]].clone().view(torch.bfloat16).float() for i in (0, 2, 3)
    )  # fmt: skip
    averages = averages.view(maps, down, across)
    expected = avg_pool2d(x.float()[None], block, ceil_mode=True)[0]
    assert torch.allclose(averages, expected, rtol=2**-8, atol=1e-4)
    spread = averages.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width]
    rest = x.float() - spread
    assert (low <= rest.amin((1, 2))).all()
    assert ((rest.amax((1, 2)) - low) * scale <= 2**bits - 1 + 1e-3).all()
    error = (out.float() - x.float()).abs()
    assert (error <= 1.001 / scale[:, None, None] + x.float().abs() * torch.finfo(dtype).eps + 1e-6).all()


def test_maps_tell_what_is_not_finite() -> None:
    x = torch.randn(3, 8, 8)
    x[1, 3, 3] = math.nan
    assert not kernels.maps_encode(x, 3, 8, 8, 4, 2, 1e-8, 0, torch.empty(1000, dtype=torch.uint8))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gates", [None, (0.0, math.inf), (-1.0, 1.0)])
def test_groups_are_the_same_on_every_level(bits: int, dtype: torch.dtype, gates: tuple[float, float] | None) -> None:
    x = torch.randn(300, 37).to(dtype)
    x[:7] *= 1e-30
    for clamped in (False, True) if gates else (False,):
        codec = GroupAffine(bits=bits, gates=gates, clamped=clamped, rounding="stochastic")
        y = x.clamp(*gates) if clamped and gates else x
        found = []
        for _ in levels():
            code = codec.encode(y, CodecState(seed=1))
            found.append((code, codec.decode(code, x.shape, x.stride(), dtype)))
        assert all(torch.equal(code, found[0][0]) and torch.equal(out, found[0][1]) for code, out in found)


def test_nothing_depends_on_the_number_of_threads() -> None:
    x, before = torch.randn(37, 64, 100), torch.get_num_threads()
    codec = GroupAffine(bits=4, rounding="stochastic", gates=(0.0, 1.0))
    maps = torch.empty(37 * 64 * (2 * 9 + 30) + 37 * 64 * 4, dtype=torch.uint8)
    mask, packed = (x > 0).float().view(torch.int32).view(-1), torch.empty(x.numel() // 8, dtype=torch.uint8)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            code = codec.encode(x, CodecState(seed=1))
            assert kernels.maps_encode(x, 37 * 64, 10, 10, 4, 2, 1e-8, 3, maps)
            assert kernels.bits_encode(mask, 0x3F800000, packed)
            decoded = codec.decode(code, x.shape, x.stride(), x.dtype)
            found.append((code, decoded, *rows_of(x, 4)[:2], maps.clone(), packed.clone()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_bits_are_the_same_on_every_level() -> None:
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        x = (torch.rand(5000) < 0.4).to(dtype) * 77
        for _ in levels():
            code, out = torch.empty(625, dtype=torch.uint8), torch.empty_like(x)
            assert kernels.bits_encode(x, 77, code)
            assert not kernels.bits_encode(x, 76, code.clone())
            kernels.bits_decode(code, 77, out)
            assert torch.equal(out, x)


def test_a_level_that_is_not_there_is_not_taken() -> None:
    assert not kernels.use_level("avx1024")


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHYBRID_KERNELS", "off")
    assert not kernels.available()
    monkeypatch.setenv("FEDHYBRID_KERNELS", "of")
    with pytest.raises(ConfigError, match="must be one of on, off, got 'of'"):
        kernels.available()


def test_kernels_and_torch_share_one_pool_of_threads() -> None:
    """A second OpenMP library would keep a second set of threads that fights with torch's for the cores."""
    code = (
        "import torch; from fedhybrid.codecs import GroupAffine\n"
        "torch.set_num_threads(2); GroupAffine().encode(torch.randn(1 << 18))\n"
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}))"
    )
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs Linux")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1
