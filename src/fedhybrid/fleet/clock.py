"""The clock of a simulated federation: it moves when told to, and never looks at the wall."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VirtualClock"]


@dataclass
class VirtualClock:
    """Seconds since the run began."""

    now_s: float = 0.0

    def advance_to(self, at_s: float) -> None:
        """Moves to `at_s`, which must not lie in the past."""
        assert at_s >= self.now_s, f"virtual time never runs backwards: now {self.now_s}, asked for {at_s}"
        self.now_s = at_s
