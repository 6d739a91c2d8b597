"""How strongly traffic is compressed: a ladder from strong to not at all, and where on it a server's version stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from fedhybrid.errors import ConfigError
from fedhybrid.updates import parse_pipeline

__all__ = ["NO_COMPRESSION", "Ladder", "Strength", "parse_ladder", "parse_strength"]

Tables = tuple[Mapping[str, Any], ...]


@final
@dataclass(frozen=True, kw_only=True)
class Strength:
    """One rung: what is kept of each tensor, and in how many bits.

    Attributes:
        ratio: Share of the elements that is sent, the largest magnitudes (the paper's p_s); 1 sends all.
        bits: Of each of these (p_q), 1 to 16; 32 sends the numbers as they are.
    """

    ratio: float
    bits: int

    def __str__(self) -> str:
        return f"{self.ratio:g}/{self.bits}"

    def tables(self, *, rounding: str) -> Tables:
        """The transforms, as in a recipe's `[traffic]`. With ratio 1 and 32 bits they change nothing, to the bit."""
        kept = {"name": "top-k", "ratio": self.ratio}
        return kept, {"name": "quantise", "bits": self.bits, "rounding": rounding}


NO_COMPRESSION = Strength(ratio=1.0, bits=32)


@final
@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The strengths of a run.

    Attributes:
        rungs: From strong to weak.
        start: Place of the first one.
        weaker_every: Merges until the next rung; 0 stays at the first.
    """

    rungs: tuple[Strength, ...]
    start: int
    weaker_every: int

    def at(self, version: int) -> Strength:
        """The strength at that version of the server.

        >>> ladder = Ladder(rungs=parse_ladder("0.1/4 0.25/8 1/32"), start=0, weaker_every=50)
        >>> [str(ladder.at(version)) for version in (0, 49, 50, 100, 1000)]
        ['0.1/4', '0.1/4', '0.25/8', '1/32', '1/32']
        """
        steps = version // self.weaker_every if self.weaker_every else 0
        return self.rungs[min(self.start + steps, len(self.rungs) - 1)]


def parse_ladder(text: str) -> tuple[Strength, ...]:
    """The rungs of a ladder as a recipe writes it: ratio/bits, with spaces between them.

    Raises:
        ConfigError: No rungs, some that are none, or one that is stronger than the one before it; all at once.

    >>> parse_ladder("0.25/8 0.1/4")
    Traceback (most recent call last):
    fedhybrid.errors.ConfigError: ladder must go from strong to weak: 0.1/4 after 0.25/8 keeps less; put it before
    """
    problems: list[str] = []
    rungs: list[Strength] = []
    for word in text.split():
        try:
            rungs.append(parse_strength(word, where="ladder"))
        except ConfigError as error:
            problems += error.problems
    if not text.split():
        problems.append("ladder needs at least one strength such as 0.25/8 (ratio/bits), got none")
    problems += [
        f"ladder must go from strong to weak: {after} after {before} keeps less; put it before"
        for before, after in pairwise(rungs)
        if after.ratio < before.ratio or after.bits < before.bits
    ]
    if problems:
        raise ConfigError(problems)
    return tuple(rungs)


def parse_strength(word: str, *, where: str) -> Strength:
    """A strength as a recipe writes it, at the option `where`.

    >>> parse_strength("0.250/8", where="start") == parse_strength(".25/8", where="ladder")
    True

    Raises:
        ConfigError: It is none.
    """
    ratio, slash, bits = word.partition("/")
    try:
        made = Strength(ratio=float(ratio), bits=int(bits))
    except ValueError:
        made = None
    if made is None or not slash or not math.isfinite(made.ratio):
        raise ConfigError(f"{where}: a strength is ratio/bits such as 0.25/8, got {word!r}")
    parse_pipeline(made.tables(rounding="nearest"), where=f"{where}: {word}")
    return made
