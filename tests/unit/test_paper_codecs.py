"""What the papers of the codecs claim, as far as one tensor shows it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fedhybrid.codecs import CODECS, Codec, CodecState


def normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def there_and_back(codec: Codec, x: Tensor, state: CodecState | None = None) -> Tensor:
    return codec.decode(codec.encode(x, state), x.shape, x.stride(), x.dtype)


def relative(found: Tensor, x: Tensor) -> float:
    return float((found - x).norm() / x.norm())


def squared(found: Tensor, x: Tensor) -> float:
    return relative(found, x) ** 2


def smooth(side: int, seed: int = 0) -> Tensor:
    """Signed maps like the inputs of a batch norm: a smooth part and a little noise."""
    return interpolate(normal((4, 8, side // 8, side // 8), seed), side, mode="bicubic") + 0.1 * normal(
        (4, 8, side, side), seed + 1
    )


class TestDivision:
    """DIVISION, ICML 2023."""

    @pytest.mark.parametrize(
        ("side", "bits", "shrinks"),
        [(56, 2.26, 14.2), (32, 2.28, 14.0), (16, 2.38, 13.5), (8, 2.75, 11.6), (7, 2.98, 10.7), (4, 5.0, 6.4)],
    )
    def test_payload_is_what_the_formula_says(self, side: int, bits: float, shrinks: float) -> None:
        """16 / p**2 + 2 + 32 / side**2 bits an element; maps of 7 end at whole bytes, which the formula leaves out."""
        shape, pool = (64, 16, side, side), min(8, side)
        numbers_bits = math.ceil(side**2 * 2 / 8) * 8 / side**2
        exact = 16 / pool**2 + numbers_bits + 32 / side**2
        found = 8 * CODECS["division"]().encode(torch.zeros(shape)).numel() / math.prod(shape)
        assert found == pytest.approx(exact, abs=1e-9)
        assert found == pytest.approx(bits, abs=0.006 if side != 7 else 0.13)
        assert 32 / found == pytest.approx(shrinks, abs=0.06 if side != 7 else 0.4)

    @pytest.mark.parametrize(("side", "gain"), [(56, 0.25), (32, 0.12), (16, 0.0)])
    def test_averages_help_on_smooth_signed_maps(self, side: int, gain: float) -> None:
        x = smooth(side)
        assert relative(there_and_back(CODECS["division"](), x), x) < (1 - gain) * relative(plain_2_bits(x), x)

    def test_averages_change_nothing_on_maps_of_one_block(self) -> None:
        x = smooth(8)
        assert 0.9 < relative(there_and_back(CODECS["division"](), x), x) / relative(plain_2_bits(x), x) < 1.1

    @pytest.mark.parametrize("side", [56, 32])
    def test_averages_harm_behind_a_relu(self, side: int) -> None:
        """Zeros are exact in plain two bits, and lost when averages are taken off."""
        x = smooth(side).relu()
        assert relative(there_and_back(CODECS["division"](), x), x) > 1.1 * relative(plain_2_bits(x), x)

    def test_many_draws_come_close_to_the_maps(self) -> None:
        """Measured: 0.48 for one draw, 0.06 for the mean of 64; a fall like one over the root."""
        x, codec, state = smooth(32), CODECS["division"](), CodecState()
        draws = torch.stack([there_and_back(codec, x, state) for _ in range(64)])
        one, mean = relative(draws[0], x), relative(draws.mean(0), x)
        assert one < 0.5
        assert 6.5 < one / mean < 9.5


def plain_2_bits(x: Tensor) -> Tensor:
    """Each map between its smallest and largest value, rounded at random."""
    flat = x.flatten(2)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    step = (high - low) / 3
    noise = torch.rand(flat.shape, generator=torch.Generator().manual_seed(1))
    return (((flat - low) / step + noise).floor().clamp(0, 3) * step + low).view(x.shape)


class TestMesa:
    """Mesa, 2021."""

    scales = torch.tensor([0.2, 1.0, 5.0])

    def heads(self, seed: int = 0) -> Tensor:
        return normal((16, 3, 64, 32), seed) * self.scales.view(1, 3, 1, 1)

    def test_a_range_for_each_head_saves_the_smallest(self) -> None:
        """Measured: 0.8 % against 21 % for one range for the layer."""
        x = self.heads()
        by_head, by_layer = there_and_back(CODECS["mesa"](groups=3), x), there_and_back(CODECS["mesa"](groups=1), x)
        assert relative(by_layer[:, 0], x[:, 0]) > 10 * relative(by_head[:, 0], x[:, 0])

    def test_slices_of_channels_are_heads_too(self) -> None:
        x = self.heads().transpose(1, 2).reshape(16, 64, 96)
        found = there_and_back(CODECS["mesa"](groups=3), x)
        for head in range(3):
            part = slice(32 * head, 32 * head + 32)
            assert relative(found[..., part], x[..., part]) < 0.015

    def test_round_trip_of_each_head_is_within_one_and_a_half_per_cent(self) -> None:
        x = self.heads()
        found = there_and_back(CODECS["mesa"](groups=3), x)
        assert all(relative(found[:, head], x[:, head]) < 0.015 for head in range(3))

    def test_twice_the_range_is_clamped_and_never_wraps_round(self) -> None:
        codec, state, x = CODECS["mesa"](groups=3), CodecState(), self.heads()
        there_and_back(codec, x, state)
        found = there_and_back(codec, 2 * x, state)
        assert found.isfinite().all()
        large = (2 * x).abs() > 1.2 * x.abs().amax((0, 2, 3), keepdim=True)
        assert large.any()
        assert (found[large].sign() == x[large].sign()).all()
        assert relative(found, 2 * x) < 0.1

    def test_drifting_ranges_cost_little_once_clamped(self) -> None:
        """Measured with ranges that drift by 30 %: 0.017 clamped, 0.11 on average without a clamp."""
        codec, state, errors = CODECS["mesa"](groups=3), CodecState(), []
        for step in range(30):
            x = self.heads(step) * (1 + 0.3 * math.sin(step))
            errors.append(relative(there_and_back(codec, x, state), x))
        assert sum(errors) / len(errors) < 0.03


class TestChannelMix:
    """FedHybrid, SenSys 2024: each channel its own range and width."""

    def maps(self, seed: int = 0) -> Tensor:
        """Behind a ReLU, with scales of channels that differ as in trained networks."""
        scales = torch.exp(1.2 * normal((1, 64, 1, 1), seed))
        return (normal((8, 64, 16, 16), seed + 1) * scales).relu()

    @pytest.mark.parametrize("seed", [0, 10, 20, 30])
    def test_mixed_widths_beat_one_width_at_equal_bytes(self, seed: int) -> None:
        """Measured in squares: per tensor 0.121, groups of 256 0.0091, per channel 0.0086, mixed 0.0035."""
        x, mix = self.maps(seed), CODECS["channel-mix"](mean_bits=4)
        rows = x.transpose(0, 1).reshape(64, -1)
        tensor, groups, channels = (squared(in_4_bits(y), y) for y in (x.view(1, -1), x.view(-1, 256), rows))
        assert squared(there_and_back(mix, x), x) < 0.65 * min(groups, channels)
        assert max(groups, channels) < 0.3 * tensor
        group_bytes = x.numel() // 2 + 8 * x.numel() // 256
        assert mix.encoded_bytes(x.shape, x.dtype) <= group_bytes

    def test_expected_error_is_the_formulas(self) -> None:
        """Stochastic rounding errs by step**2 / 6 on average where values are spread evenly."""
        x = torch.rand((16, 8, 32, 32), generator=torch.Generator().manual_seed(4))
        for bits in (2, 4, 8):
            error = float((there_and_back(CODECS["channel-mix"](mean_bits=bits), x) - x).square().mean())
            assert error == pytest.approx(1 / (2**bits - 1) ** 2 / 6, rel=0.03)


def in_4_bits(rows: Tensor) -> Tensor:
    """Four bits, rounded at random, between the smallest and the largest value of each row."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = ((high - low) / 15).clamp_min(1e-9)
    noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(2))
    return ((rows - low) / step + noise).floor().clamp(0, 15) * step + low
