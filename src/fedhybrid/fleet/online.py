"""Availability as a recipe states it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from fedhybrid.errors import ConfigError
from fedhybrid.fleet.availability import AlwaysOnline, Availability, DutyCycle, RandomSlots
from fedhybrid.fleet.intervals import load_intervals
from fedhybrid.registry import lookup
from fedhybrid.seeds import derive_seed

__all__ = ["AvailabilitySpec", "make_availability"]

_MUST: dict[str, tuple[str, ...]] = {
    "always": (),
    "duty": ("on_s", "off_s"),
    "file": ("file",),
    "random": ("on_ratio",),
}
_MAY = {"duty": ("jitter_ratio",), "random": ("slot_s",)}
_SLOT_S = 300.0
_LEAST_S, _MOST_S = 1e-6, 1e9  # times are compared as whole microseconds


@dataclass(frozen=True, kw_only=True)
class AvailabilitySpec:
    """When clients are online, as a recipe states it in `[fleet.availability]`. Options of other kinds stay None.

    Attributes:
        kind: "always", "duty", "random" or "file".
        on_s, off_s: Of "duty": for how long a client is online and away in turn; at a random place of it at time 0.
        jitter_ratio: Of "duty": how much each client's two times differ from these, up and down; 0 where None.
        on_ratio: Of "random": the share of the time that a client is online.
        slot_s: Of "random": a client comes or goes at ends of such slots; 300 where None.
        file: Of "file": a .csv file, see `fleet/intervals.py`.
    """

    kind: str = "always"
    on_s: float | None = None
    off_s: float | None = None
    jitter_ratio: float | None = None
    on_ratio: float | None = None
    slot_s: float | None = None
    file: str | Path | None = None


def make_availability(spec: AvailabilitySpec, seed: int) -> Availability:
    """What a spec says, for any number of clients.

    Raises:
        ConfigError: An unknown kind; options that are missing, of another kind or out of their range; what is wrong
            with the file; all at once.
    """
    try:
        must = lookup("kind of availability", _MUST, spec.kind)
    except ConfigError as error:
        raise ConfigError([f"fleet.availability.kind: {problem}" for problem in error.problems]) from error
    takes = (*must, *_MAY.get(spec.kind, ()))
    given = {f.name: getattr(spec, f.name) for f in fields(spec) if getattr(spec, f.name) is not None}
    problems = [
        f"fleet.availability.{name} is no option of kind {spec.kind!r}, which has {', '.join(takes) or 'none'}"
        for name in given
        if name not in takes and name != "kind"
    ]
    problems += [
        f"fleet.availability.{name} is missing: kind {spec.kind!r} needs it" for name in must if name not in given
    ]
    problems += [
        f"fleet.availability.{name} must be {wanted}, got {given[name]}"
        for name, wanted, good in (
            ("on_s", "a positive number of seconds", _is_time),
            ("off_s", "a positive number of seconds", _is_time),
            ("slot_s", "a positive number of seconds", _is_time),
            ("jitter_ratio", "at least 0 and below 1", lambda ratio: 0 <= ratio < 1),
            ("on_ratio", "above 0 and below 1", lambda ratio: 0 < ratio < 1),
        )
        if name in given and name in takes and not good(given[name])
    ]
    found: Availability = AlwaysOnline()
    if "file" in given and "file" in takes:
        try:
            found = load_intervals(Path(given["file"]))
        except ConfigError as error:
            problems += [f"fleet.availability.file: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    key = derive_seed(seed, purpose="availability")
    if spec.kind == "duty":
        return DutyCycle(on_s=given["on_s"], off_s=given["off_s"], jitter_ratio=given.get("jitter_ratio", 0.0), key=key)
    if spec.kind == "random":
        return RandomSlots(on_ratio=given["on_ratio"], slot_s=given.get("slot_s", _SLOT_S), key=key)
    return found


def _is_time(time_s: float) -> bool:
    return math.isfinite(time_s) and _LEAST_S <= time_s <= _MOST_S
