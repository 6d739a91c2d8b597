"""The clock of a simulated federation: it moves when told to, and never looks at the wall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["VirtualClock", "to_micros", "to_seconds"]


@dataclass
class VirtualClock:
    """Seconds since the run began."""

    now_s: float = 0.0

    def advance_to(self, at_s: float) -> None:
        """Moves to `at_s`, which must not lie in the past."""
        assert at_s >= self.now_s, f"virtual time never runs backwards: now {self.now_s}, asked for {at_s}"
        self.now_s = at_s


def to_micros(time_s: float) -> int:
    """Whole microseconds, which compare exactly; half of one is rounded to the even number."""
    return round(time_s * 1e6)


def to_seconds(time_us: int | np.int64) -> float:
    """Seconds of so many microseconds; `to_micros` gives these back, up to 2**52 (142 years)."""
    return int(time_us) / 1e6
