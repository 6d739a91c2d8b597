"""Bytes and percentages as people write them: "96 MiB", "1.5 GB", "40%"."""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass

from fedhybrid.errors import ConfigError

__all__ = ["Budget", "format_bytes", "format_seconds", "parse_budget", "parse_bytes"]

_FACTORS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*(-?[0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(-?[0-9]*\.?[0-9]+)\s*%\s*")
_LONGEST = 40  # characters; the expressions take a time that grows with the square of a text's length
_MOST_BYTES = 2**63 - 1
_MOST_PERCENT = 1e6


@dataclass(frozen=True)
class Budget:
    """A byte budget, absolute or relative to the eager step.

    Exactly one field is set. `share_ratio` = 0.4 means R + 0.4 A, with R the resident bytes (parameters, buffers,
    optimizer state, batch) and A the eager step's peak above R.
    """

    total_bytes: int | None = None
    share_ratio: float | None = None

    def resolve_bytes(self, *, resident_bytes: int, eager_peak_bytes: int) -> int:
        """The budget in bytes for a step with these figures; fractions of a byte are cut off."""
        if self.total_bytes is not None:
            return self.total_bytes
        assert self.share_ratio is not None
        return resident_bytes + int(self.share_ratio * (eager_peak_bytes - resident_bytes))


def parse_bytes(amount: str | int) -> int:
    """Bytes from an integer or a text such as "96 MiB" (2**20) or "1.5 GB" (10**9).

    Raises:
        ConfigError: Not an amount, not positive, or 8 EiB and more.

    >>> parse_bytes("96 MiB"), parse_bytes("1.5 GB"), parse_bytes(512)
    (100663296, 1500000000, 512)
    """
    if isinstance(amount, bool) or not isinstance(amount, (int, str)):
        raise ConfigError(f'a byte budget must be a whole number or a text like "96 MiB", got {reprlib.repr(amount)}')
    if isinstance(amount, int):
        total_bytes = amount
    else:
        match = _AMOUNT.fullmatch(amount) if len(amount) <= _LONGEST else None
        factor = _FACTORS.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise ConfigError(f'a byte budget must look like "96 MiB", "1.5 GB" or "40%", got {reprlib.repr(amount)}')
        amount_bytes = float(match[1]) * factor
        total_bytes = int(amount_bytes) if abs(amount_bytes) <= _MOST_BYTES else _MOST_BYTES + 1
    if total_bytes > _MOST_BYTES:
        raise ConfigError(f"a byte budget must be below 8 EiB, got {reprlib.repr(amount)}")
    if total_bytes <= 0:
        raise ConfigError(f"a byte budget must be positive, got {reprlib.repr(amount)}")
    return total_bytes


def parse_budget(text: str | int | Budget) -> Budget:
    """A budget in bytes or in per cent of the eager step's peak above the resident bytes.

    Raises:
        ConfigError: Neither of the two, not positive, or more than any machine has (8 EiB, 1,000,000 %).

    >>> parse_budget("40%")
    Budget(total_bytes=None, share_ratio=0.4)
    """
    if isinstance(text, Budget):
        return text
    if isinstance(text, str) and len(text) <= _LONGEST and (match := _PERCENT.fullmatch(text)):
        share_ratio = float(match[1]) / 100
        if share_ratio <= 0:
            raise ConfigError(f"a budget in per cent must be positive, got {text!r}")
        if share_ratio > _MOST_PERCENT / 100:
            raise ConfigError(f"a budget in per cent must be at most {_MOST_PERCENT:,.0f}, got {text!r}")
        return Budget(share_ratio=share_ratio)
    return Budget(total_bytes=parse_bytes(text))


def format_bytes(total_bytes: int) -> str:
    """Bytes for people.

    >>> format_bytes(100663296)
    '96.00 MiB'
    """
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(total_bytes) >= factor:
            return f"{total_bytes / factor:.2f} {unit}"
    return f"{total_bytes} B"


def format_seconds(time_s: float) -> str:
    """Seconds for people.

    >>> format_seconds(0.0123), format_seconds(75.0), format_seconds(7300.0)
    ('12.3 ms', '75.0 s', '2.03 h')
    """
    if time_s < 0:
        return f"-{format_seconds(-time_s)}"
    if time_s < 1:
        return f"{time_s * 1e3:.1f} ms"
    if time_s < 600:
        return f"{time_s:.1f} s"
    return f"{time_s / 3600:.2f} h"
