"""Profiles of one's own: rates given directly or as shares of the peaks, and clear words about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhybrid.devices import load_profile
from fedhybrid.errors import ConfigError
from fedhybrid.opwork import OP_KINDS, OpWork

HEAD = """
name = "mine"
title = "My board"
sources = ["measured on my desk"]
memory_bytes = 1_048_576
op_overhead_s = 1e-3
uplink_bytes_per_s = 1000
downlink_bytes_per_s = 2000.0
"""
KINDS = "".join(f"[kinds.{kind}]\nflops_per_s = 1e9\nbytes_per_s = 1e6\n" for kind in OP_KINDS)


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_time_is_the_larger_of_compute_and_memory_plus_overhead(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path, HEAD + KINDS)))
    assert profile.op_time_s(OpWork(kind="conv", flops=2e9, moved_bytes=10)) == pytest.approx(2.001)
    assert profile.op_time_s(OpWork(kind="conv", flops=10.0, moved_bytes=3_000_000)) == pytest.approx(3.001)


def test_direct_rates_win_over_shares_of_the_peaks(tmp_path: Path) -> None:
    shares = "[efficiency_ratio]\n" + "".join(f"{kind} = {{ flops = 0.5, bytes = 0.25 }}\n" for kind in OP_KINDS)
    text = HEAD + "[peak]\nflops_per_s = 8e9\nbytes_per_s = 4e9\n" + shares
    profile = load_profile(write(tmp_path, text + "[kinds.conv]\nflops_per_s = 7e3\nbytes_per_s = 5e3\n"))
    assert (profile.kinds["matmul"].flops_per_s, profile.kinds["matmul"].bytes_per_s) == (4e9, 1e9)
    assert (profile.kinds["conv"].flops_per_s, profile.kinds["conv"].bytes_per_s) == (7e3, 5e3)


def test_all_problems_of_a_profile_at_once(tmp_path: Path) -> None:
    text = HEAD.replace("1_048_576", "-1").replace('"My board"', "7").replace("1000\n", "inf\n")
    with pytest.raises(ConfigError) as caught:
        load_profile(write(tmp_path, text + "colour = 'red'\n"))
    words = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4, words
    for key in ("memory_bytes", "title", "uplink_bytes_per_s", "colour"):
        assert f": {key}: " in words


def test_missing_and_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(write(tmp_path, HEAD + KINDS.replace("kinds.conv", "kinds.convolution")))
    assert len(caught.value.problems) == 2
    assert "unknown operator kind 'convolution'" in caught.value.problems[0]
    assert "needs [kinds.conv]" in caught.value.problems[1]


def test_what_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'laptop'"):
        load_profile("labtop")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_profile(write(tmp_path, "name = "))


ENERGY = "watts_compute = 2.5\njoules_per_byte_up = 1e-6\njoules_per_byte_down = 2e-7\n"


def test_energy_is_compute_and_bytes_both_ways(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, HEAD + ENERGY + KINDS))
    assert profile.energy_j(compute_s=4.0, bytes_up=10**6, bytes_down=10**7) == pytest.approx(10.0 + 1.0 + 2.0)


def test_energy_may_be_left_out_but_not_half_of_it(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, HEAD + KINDS))
    with pytest.raises(ConfigError, match="'mine' has no energy figures; add watts_compute"):
        profile.energy_j(1.0, 0, 0)
    with pytest.raises(ConfigError, match="go together, joules_per_byte_up, joules_per_byte_down missing"):
        load_profile(write(tmp_path, HEAD + ENERGY.splitlines()[0] + "\n" + KINDS))


@pytest.mark.parametrize(
    ("was", "becomes", "key"),
    [
        ("1_048_576", "1_048_575", "memory_bytes"),
        ("1_048_576", str(2**50 + 1), "memory_bytes"),
        ("1e-3", "10.1", "op_overhead_s"),
        ("1e-3", "1e308", "op_overhead_s"),
        ("1e-3", "nan", "op_overhead_s"),
        ("1000\n", "1e-320\n", "uplink_bytes_per_s"),
        ("2000.0", "1e16", "downlink_bytes_per_s"),
        ("bytes_per_s = 1e6", "bytes_per_s = 1e-300", "bytes_per_s"),
        ("flops_per_s = 1e9", "flops_per_s = 1e19", "flops_per_s"),
        ("watts_compute = 2.5", "watts_compute = 1e300", "watts_compute"),
        ("up = 1e-6", "up = 1e-300", "joules_per_byte_up"),
        ("down = 2e-7", "down = nan", "joules_per_byte_down"),
    ],
)
def test_figures_that_no_device_has(was: str, becomes: str, key: str, tmp_path: Path) -> None:
    assert was in HEAD + ENERGY + KINDS
    with pytest.raises(ConfigError, match=rf"{key}: .*got "):
        load_profile(write(tmp_path, (HEAD + ENERGY + KINDS).replace(was, becomes, 1)))


def test_a_share_of_the_peak_that_is_next_to_nothing(tmp_path: Path) -> None:
    shares = "[efficiency_ratio]\n" + "".join(f"{kind} = {{ flops = 0.5, bytes = 1e-300 }}\n" for kind in OP_KINDS)
    with pytest.raises(ConfigError, match=r"times efficiency_ratio\.conv must be 1000 per second at least") as caught:
        load_profile(write(tmp_path, HEAD + "[peak]\nflops_per_s = 8e9\nbytes_per_s = 4e9\n" + shares))
    assert len(caught.value.problems) == len(OP_KINDS)
