"""A task's steps on a device whose free memory changes: which program runs when, and how long all of it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedhybrid.records import FloatArray, IntArray

if TYPE_CHECKING:
    from fedhybrid.engine.shelf import Shelf

__all__ = ["LeftMemory", "Leg", "Walk", "walk"]

_MOMENT_S = 1e-9  # a step that begins this little before a change begins at it


class LeftMemory(Protocol):
    """What the device's other apps leave for training, from `start_s` on."""

    def __call__(self, start_s: float, end_s: float) -> tuple[FloatArray, IntArray]:
        """Times from which so many bytes are left, ascending, the first not after `start_s`; both not empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class Leg:
    """So many steps by one plan of the book; None is the unplanned step."""

    plan: str | None
    steps: int


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A task's computing, start to end.

    Attributes:
        legs: Its programs in order.
        seconds: Of computing.
        violations_s: When steps began during which less memory was left than the running program needs: the fall came
            after their beginning, and only the next step could follow it.
        switches_s: When a step began by another program than the one before it (or than the one promised).
        stopped: Why it ended before its last step; None where it did not.
    """

    legs: tuple[Leg, ...]
    seconds: float
    violations_s: tuple[float, ...] = ()
    switches_s: tuple[float, ...] = ()
    stopped: str | None = None

    def violations(self, until_s: float = math.inf) -> int:
        """How many began before `until_s`, when the task may have been cut off."""
        return sum(at_s < until_s for at_s in self.violations_s)

    def switches(self, until_s: float = math.inf) -> int:
        """The same, of moves along the ladder."""
        return sum(at_s < until_s for at_s in self.switches_s)


def walk(
    book: Shelf,
    device: str,
    *,
    plan: str | None,
    steps: int,
    promised_bytes: int,
    start_s: float,
    speed_factor: float,
    left: LeftMemory | None,
) -> Walk:
    """Follows the memory along a task: before each step the client takes the plan for what is left.

    It goes down its ladder of plans as memory falls, and up again as it comes back, never above what it has promised.

    Args:
        book: All plans.
        device: Name of the client's profile.
        plan: What it was given, for `promised_bytes`.
        steps: How many.
        promised_bytes: Its budget.
        start_s: When its first step begins.
        speed_factor: Seconds on this very device, to those of its profile.
        left: The memory; None where the budget stands still.
    """
    if left is None:
        return Walk(
            legs=(Leg(plan=plan, steps=steps),), seconds=steps * book.program(device, plan).step_time_s * speed_factor
        )
    legs: list[Leg] = []
    violations_s: list[float] = []
    switches_s: list[float] = []
    now_s, done, running = start_s, 0, plan

    def walked(stopped: str | None = None) -> Walk:
        return Walk(
            legs=tuple(legs),
            seconds=now_s - start_s,
            violations_s=tuple(violations_s),
            switches_s=tuple(switches_s),
            stopped=stopped,
        )

    while done < steps:
        # As far as the rest would take by the program that runs now; with a slower one there is a next look.
        known_s = now_s + book.program(device, running).step_time_s * speed_factor * (steps - done)
        times_s, left_bytes = left(now_s, known_s)
        for at in range(len(times_s)):
            until_s = float(times_s[at + 1]) if at + 1 < len(times_s) else known_s
            if until_s <= now_s + _MOMENT_S:
                continue
            limit_bytes = min(promised_bytes, int(left_bytes[at]))
            chosen = book.choose(device, limit_bytes)
            if book.needed_bytes(chosen) > limit_bytes:
                return walked(
                    f"step {done + 1} of {steps} had {limit_bytes:,} bytes left, the smallest that runs needs "
                    f"{book.least_bytes(device):,}"
                )
            if chosen != running:
                switches_s.append(now_s)
            running = chosen
            step_s = book.program(device, chosen).step_time_s * speed_factor
            count = min(steps - done, math.ceil((until_s - now_s - _MOMENT_S) / step_s))
            _add(legs, Leg(plan=chosen, steps=count))
            last_s = now_s + (count - 1) * step_s
            now_s, done = now_s + count * step_s, done + count
            if _fell(left(last_s, now_s), last_s, now_s, book.needed_bytes(chosen)):
                violations_s.append(last_s)
            if done == steps:
                break
    return walked()


def _add(legs: list[Leg], leg: Leg) -> None:
    if legs and legs[-1].plan == leg.plan:
        leg = Leg(plan=leg.plan, steps=legs.pop().steps + leg.steps)
    legs.append(leg)


def _fell(
    known: tuple[Sequence[float] | FloatArray, IntArray], start_s: float, end_s: float, needed_bytes: int
) -> bool:
    """Whether less than `needed_bytes` was left at some moment after `start_s` and before `end_s`."""
    times_s, left_bytes = known
    return any(
        start_s < float(at_s) < end_s - _MOMENT_S and int(found) < needed_bytes
        for at_s, found in zip(times_s, left_bytes, strict=True)
    )
