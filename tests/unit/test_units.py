"""Budgets as people write them, and what is said about those that are none."""

from __future__ import annotations

import time

import pytest

from fedhybrid.errors import ConfigError
from fedhybrid.units import parse_budget


@pytest.mark.parametrize("text", ["-5%", "0%", "-0.5 %", "-5 MiB", "-1.5GB", "-3", "0", -3])
def test_a_budget_that_is_not_positive_is_told_so(text: str | int) -> None:
    with pytest.raises(ConfigError, match="must be positive, got"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["--5%", "lots", "5 MiBs", "%", "", "1" * 41, "1" * 20_000 + "!", "9" * 400 + "%"])
def test_what_is_no_amount_is_told_what_one_looks_like(text: str) -> None:
    with pytest.raises(ConfigError, match=r'must look like "96 MiB", "1\.5 GB" or "40%"'):
        parse_budget(text)


@pytest.mark.parametrize("text", [2**63, 10**400, "9" * 30, "1e999", "9e18 TiB"])
def test_a_budget_that_no_machine_has_is_told_so(text: str | int) -> None:
    with pytest.raises(ConfigError, match="must be below 8 EiB, got"):
        parse_budget(text)


def test_a_share_that_no_step_needs_is_told_so() -> None:
    assert parse_budget("1000000%").share_ratio == 1e4
    with pytest.raises(ConfigError, match=r"must be at most 1,000,000, got '1000001%'"):
        parse_budget("1000001%")


def test_a_long_text_is_refused_at_once() -> None:
    start_s = time.perf_counter()
    for text in ("1" * 1_000_000 + "!", "." * 1_000_000, " " * 1_000_000):
        with pytest.raises(ConfigError) as caught:
            parse_budget(text)
        assert len(str(caught.value)) < 150
    assert time.perf_counter() - start_s < 1.0
