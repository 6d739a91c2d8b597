"""Budgets that differ within a tier: what is drawn follows what was asked for; clear words about wrong tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedhybrid.errors import ConfigError
from fedhybrid.fleet.budgets import parse_distribution
from fedhybrid.units import parse_budget

GB = 10**9
MEMORY = 4 * GB
MANY = 40_000


def drawn_bytes(table: dict[str, Any], *, resident_bytes: int = 0, eager_peak_bytes: int = 10**12) -> np.ndarray:
    distribution = parse_distribution(table, MEMORY)
    drawn = distribution.draw(MANY, np.random.default_rng(1))
    assert drawn.dtype == np.float32
    found = distribution.resolve_bytes(drawn, resident_bytes=resident_bytes, eager_peak_bytes=eager_peak_bytes)
    assert (found.dtype, found.shape) == (np.int64, (MANY,))
    return found


def test_uniform_in_per_cent() -> None:
    shares = drawn_bytes({"distribution": "uniform", "low": "25%", "high": "80%"}) / 1e12
    assert 0.25 <= shares.min() < 0.251
    assert 0.799 < shares.max() <= 0.8
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.3875, 0.525, 0.6625], abs=0.01)
    one = drawn_bytes({"distribution": "uniform", "low": "50%", "high": "50%"}, resident_bytes=7, eager_peak_bytes=1007)
    assert set(one.tolist()) == {507}


def test_lognormal_in_bytes_ends_at_the_devices_memory() -> None:
    found = drawn_bytes({"distribution": "lognormal", "median": "1.5 GB", "spread": 0.5})
    assert np.median(found) == pytest.approx(1.5 * GB, rel=0.02)
    below = found[found < 1.5 * GB]
    assert np.quantile(below, 0.3174) == pytest.approx(1.5 * GB * math.exp(-0.5), rel=0.02), "one deviation below"
    assert found.max() == MEMORY
    assert (found == MEMORY).mean() == pytest.approx(0.025, abs=0.003), "beyond ln(4 / 1.5) / 0.5 = 1.96 deviations"
    assert drawn_bytes({"distribution": "lognormal", "median": 1000, "spread": 300.0}).min() >= 1


def test_normal_within_its_limits() -> None:
    found = drawn_bytes({"distribution": "normal", "mean": "1 GB", "deviation": "300 MB", "low": "0.6 GB"})
    assert np.median(found) == pytest.approx(GB, rel=0.01)
    assert np.quantile(found, 0.8413) == pytest.approx(1.3 * GB, rel=0.01)
    assert found.min() == 6 * GB // 10
    wide = drawn_bytes({"distribution": "normal", "mean": "40%", "deviation": "80%", "high": "90%"}) / 1e12
    assert (wide.min(), wide.max()) == (pytest.approx(0.04, rel=1e-6), pytest.approx(0.9, rel=1e-6))


def test_choices_are_exact_and_may_mix_units() -> None:
    values = ["25%", "431000001", 3 * GB + 1]
    found = drawn_bytes(
        {"distribution": "choice", "values": values, "shares": [1, 2, 5.0]}, resident_bytes=100, eager_peak_bytes=1100
    )
    exact = [parse_budget(value).resolve_bytes(resident_bytes=100, eager_peak_bytes=1100) for value in values]
    amounts, counts = np.unique(found, return_counts=True)
    assert amounts.tolist() == sorted(exact) == [350, 431000001, 3 * GB + 1]
    assert counts / MANY == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)
    alike = drawn_bytes({"distribution": "choice", "values": ["10%", "20%"]})
    assert (alike < 1.5e11).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("table", "problems"),
    [
        ({}, ["budget.distribution must name one of choice, lognormal, normal, uniform, got None"]),
        ({"distribution": "unifrom"}, ["Did you mean 'uniform'?"]),
        (
            {"distribution": "uniform", "lowest": "3%", "low": "-4%"},
            [
                "budget.lowest: the distribution 'uniform' has no such option. Did you mean 'low'? Known: low, high.",
                "budget.high is missing",
                "budget.low: a budget in per cent must be positive",
            ],
        ),
        ({"distribution": "uniform", "low": "30%", "high": "1 GB"}, ["budget.low is in per cent, budget.high is in"]),
        ({"distribution": "uniform", "low": "30%", "high": "20%"}, ["budget.low must not be above budget.high"]),
        (
            {"distribution": "uniform", "low": 1.5, "high": "5 GB"},
            ["budget.low: must be bytes", "more than the memory"],
        ),
        ({"distribution": "lognormal", "median": "1 GB", "spread": math.inf}, ["budget.spread must be a positive"]),
        ({"distribution": "lognormal", "median": "1 GB", "spread": "wide"}, ["budget.spread must be a positive"]),
        ({"distribution": "choice", "values": []}, ["budget.values must be a list of at least one amount"]),
        ({"distribution": "choice", "values": "25%"}, ["budget.values must be a list of at least one amount"]),
        ({"distribution": "choice", "values": ["25%"], "shares": [1, 2]}, ["budget.shares must be 1 positive numbers"]),
        ({"distribution": "choice", "values": ["25%", "3%"], "shares": [1, 0]}, ["budget.shares must be 2 positive"]),
        (
            {"distribution": "choice", "values": ["lots", "5 GB"]},
            ["budget.values, entry 1: a byte budget", "entry 2: 4.66 GiB is more than the memory of the device"],
        ),
    ],
)
def test_what_is_no_distribution(table: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_distribution(table, MEMORY)
    assert len(caught.value.problems) == len(problems), caught.value.problems
    for problem, part in zip(caught.value.problems, problems, strict=True):
        assert part in problem
