"""Budgets that differ within a tier: what a recipe says of their distribution, and one draw for each client.

In a recipe a tier's `budget` is one amount ("96 MiB", "40%") or a table:

    {distribution = "uniform", low = "25%", high = "80%"}
    {distribution = "normal", mean = "600 MB", deviation = "150 MB", low = "200 MB"}
    {distribution = "lognormal", median = "1.5 GB", spread = 0.5, high = "3 GB"}
    {distribution = "choice", values = ["25%", "512 MiB"], shares = [1, 2]}

Amounts are per cent of the eager step, or bytes; only `choice` may mix the two. `low` and `high` may be left out of
"normal" (`low` is then a tenth of the mean) and of "lognormal"; what is drawn beyond them counts as them. `spread` is
the standard deviation of the logarithm. Bytes beyond the memory of the tier's device count as all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fedhybrid.errors import ConfigError
from fedhybrid.records import FloatArray, IntArray
from fedhybrid.registry import lookup, nearest_hint
from fedhybrid.units import Budget, format_bytes, parse_budget

__all__ = ["BudgetDistribution", "ChoiceBudget", "SpreadBudget", "parse_distribution"]

_MUST = {
    "choice": ("values",),
    "lognormal": ("median", "spread"),
    "normal": ("mean", "deviation"),
    "uniform": ("low", "high"),
}
_MAY = {"choice": ("shares",), "lognormal": ("low", "high"), "normal": ("low", "high"), "uniform": ()}
_PLAIN = ("spread", "shares", "values")  # all others are amounts


@final
@dataclass(frozen=True, kw_only=True)
class SpreadBudget:
    """Amounts that fill a range.

    Attributes:
        kind: "uniform", "normal" or "lognormal".
        in_bytes: Whether amounts are bytes; shares of the eager step's peak above the resident bytes otherwise.
        middle, width: Mean and deviation, or median and spread; not read for "uniform".
        low, high: No amount is beyond.
    """

    kind: str
    in_bytes: bool
    low: float
    high: float
    middle: float = 0.0
    width: float = 0.0

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """An amount for each of `count` clients, rounded down to what 32 bits can hold."""
        if self.kind == "uniform":
            exact: FloatArray = rng.uniform(self.low, self.high, size=count)
        elif self.kind == "normal":
            exact = np.clip(self.middle + self.width * rng.standard_normal(count), self.low, self.high)
        else:
            with np.errstate(over="ignore"):
                exact = np.clip(self.middle * np.exp(self.width * rng.standard_normal(count)), self.low, self.high)
        drawn = exact.astype(np.float32)
        return np.where(drawn > exact, np.nextafter(drawn, np.float32(0)), drawn)

    def resolve_bytes(self, drawn: NDArray[np.float32], *, resident_bytes: int, eager_peak_bytes: int) -> IntArray:
        """Budgets in bytes for a step with these figures."""
        amounts = drawn.astype(np.float64)
        if self.in_bytes:
            return amounts.astype(np.int64)
        return resident_bytes + (amounts * (eager_peak_bytes - resident_bytes)).astype(np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class ChoiceBudget:
    """A few amounts. `ratios` are their parts of the clients on average and add up to 1; each client is drawn alone."""

    values: tuple[Budget, ...]
    ratios: tuple[float, ...]

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """The place in `values` of each of `count` clients."""
        return rng.choice(len(self.values), size=count, p=self.ratios).astype(np.float32)

    def resolve_bytes(self, drawn: NDArray[np.float32], *, resident_bytes: int, eager_peak_bytes: int) -> IntArray:
        """Budgets in bytes for a step with these figures."""
        amounts = [
            value.resolve_bytes(resident_bytes=resident_bytes, eager_peak_bytes=eager_peak_bytes)
            for value in self.values
        ]
        return np.array(amounts, dtype=np.int64)[drawn.astype(np.int64)]


BudgetDistribution = ChoiceBudget | SpreadBudget


def parse_distribution(table: Mapping[str, Any], memory_bytes: int) -> BudgetDistribution:
    """What a table as in the module's text says.

    Args:
        table: With the key `distribution`.
        memory_bytes: Of the device; no budget is above it.

    Raises:
        ConfigError: Unknown or missing keys, amounts that are none or in the wrong order; all at once.
    """
    kind = table.get("distribution")
    if not isinstance(kind, str):
        raise ConfigError(f"budget.distribution must name one of {', '.join(_MUST)}, got {kind!r}")
    must = lookup("distribution of budgets", _MUST, kind)
    known = (*must, *_MAY[kind])
    problems = [
        f"budget.{key}: the distribution {kind!r} has no such option.{nearest_hint(key, known)} Known: "
        f"{', '.join(known)}."
        for key in table
        if key not in known and key != "distribution"
    ]
    problems += [f"budget.{key} is missing: the distribution {kind!r} needs it" for key in must if key not in table]
    amounts: dict[str, Budget] = {}
    for key in (key for key in known if key in table and key not in _PLAIN):
        try:
            amounts[key] = _amount(table[key], memory_bytes)
        except ConfigError as error:
            problems += [f"budget.{key}: {problem}" for problem in error.problems]
    problems += _plain_problems(table, known)
    if problems:
        raise ConfigError(problems)
    if kind == "choice":
        return _choice(table["values"], table.get("shares"), memory_bytes)
    return _spread(kind, amounts, float(table.get("spread", 0.0)), memory_bytes)


def _amount(text: Any, memory_bytes: int) -> Budget:
    if not isinstance(text, str | int | Budget):
        raise ConfigError(f'must be bytes or a text like "96 MiB" or "40%", got {text!r}')
    budget = parse_budget(text)
    if budget.total_bytes is not None and budget.total_bytes > memory_bytes:
        raise ConfigError(
            f"{format_bytes(budget.total_bytes)} is more than the memory of the device ({format_bytes(memory_bytes)})"
        )
    return budget


def _plain_problems(table: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """Of options that are no amounts."""
    found = []
    if "spread" in known and "spread" in table and not _is_positive(table["spread"]):
        found.append(f"budget.spread must be a positive number, got {table['spread']!r}")
    values, shares = table.get("values"), table.get("shares")
    if "values" in known and "values" in table and not (isinstance(values, list | tuple) and values):
        found.append(f"budget.values must be a list of at least one amount, got {values!r}")
    elif "shares" in known and shares is not None and values is not None:
        is_list = isinstance(shares, list | tuple) and len(shares) == len(values)
        if not (is_list and all(_is_positive(share) for share in shares)):
            found.append(f"budget.shares must be {len(values)} positive numbers, one a value, got {shares!r}")
    return found


def _is_positive(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) and number > 0


def _choice(values: Sequence[Any], shares: Sequence[float] | None, memory_bytes: int) -> ChoiceBudget:
    problems: list[str] = []
    parsed = []
    for place, value in enumerate(values, start=1):
        try:
            parsed.append(_amount(value, memory_bytes))
        except ConfigError as error:
            problems += [f"budget.values, entry {place}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    weights = [float(share) for share in shares or [1.0] * len(parsed)]
    return ChoiceBudget(values=tuple(parsed), ratios=tuple(weight / math.fsum(weights) for weight in weights))


def _spread(kind: str, amounts: Mapping[str, Budget], spread: float, memory_bytes: int) -> SpreadBudget:
    in_bytes = {key: budget.total_bytes is not None for key, budget in amounts.items()}
    if len(set(in_bytes.values())) > 1:
        words = ", ".join(f"budget.{key} is in {'bytes' if is_so else 'per cent'}" for key, is_so in in_bytes.items())
        raise ConfigError(f"{words}: give all in bytes or all in per cent")
    figures = {
        key: float(budget.total_bytes if budget.total_bytes is not None else budget.share_ratio or 0.0)
        for key, budget in amounts.items()
    }
    absolute = next(iter(in_bytes.values()))
    middle = figures.get("mean", figures.get("median", 0.0))
    lowest = 1.0 if absolute else 0.0
    low = figures.get("low", max(lowest, 0.1 * middle) if kind == "normal" else lowest)
    high = figures.get("high", float(memory_bytes) if absolute else math.inf)
    if low > high:
        raise ConfigError(f"budget.low must not be above budget.high, got {low:g} and {high:g}")
    return SpreadBudget(
        kind=kind, in_bytes=absolute, low=low, high=high, middle=middle, width=figures.get("deviation", spread)
    )
