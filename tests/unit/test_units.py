"""Budgets as people write them, and what is said about those that are none."""

from __future__ import annotations

import pytest

from fedhybrid.errors import ConfigError
from fedhybrid.units import parse_budget


@pytest.mark.parametrize("text", ["-5%", "0%", "-0.5 %", "-5 MiB", "-1.5GB", "-3", "0", -3])
def test_a_budget_that_is_not_positive_is_told_so(text: str | int) -> None:
    with pytest.raises(ConfigError, match="must be positive, got"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["--5%", "lots", "5 MiBs", "%", ""])
def test_what_is_no_amount_is_told_what_one_looks_like(text: str) -> None:
    with pytest.raises(ConfigError, match=r'must look like "96 MiB", "1\.5 GB" or "40%"'):
        parse_budget(text)
