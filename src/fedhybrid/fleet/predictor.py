"""How much memory a device may promise for the coming round, from samples of what its other apps left free.

A predictor is told every sample (one each 1 to 5 s) and the end of every window (a round's length). All its state is
arrays with one number a client, a few of them, so a million clients are tens of megabytes; every number is finite, so
that the state is JSON as it is (`{name: array.tolist()}`). Clients do not see each other: a slice of the arrays is the
state of some of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.records import FloatArray, IntArray
from fedhybrid.registry import lookup, nearest_hint

__all__ = [
    "PREDICTORS",
    "FixedFraction",
    "LastValue",
    "MeanValue",
    "Predictor",
    "RunningMinimum",
    "State",
    "make_predictor",
]

State = dict[str, FloatArray]


class Predictor(Protocol):
    """Promises bytes; state goes in and comes out."""

    def init(self, clients: int) -> State:
        """The state before anything was seen."""

    def observe(self, state: State, available_bytes: FloatArray) -> State:
        """After one more sample of each client; NaN where there is none."""

    def close_window(self, state: State) -> State:
        """After a window ended: it learns how its promise at the window's beginning turned out."""

    def predict(self, state: State) -> IntArray:
        """Bytes that each client may promise for a window that begins now; 0 where it has seen nothing."""


@final
@dataclass(frozen=True, kw_only=True)
class LastValue:
    """Promises all that is available now; the baseline that knows nothing of apps to come."""

    def init(self, clients: int) -> State:
        """Nothing seen."""
        return {"latest": np.zeros(clients)}

    def observe(self, state: State, available_bytes: FloatArray) -> State:
        """Keeps the sample."""
        return {"latest": _newest(state["latest"], available_bytes)}

    def close_window(self, state: State) -> State:
        """Learns nothing."""
        return state

    def predict(self, state: State) -> IntArray:
        """The latest sample."""
        return state["latest"].astype(np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class FixedFraction:
    """Promises the same share of what is available now, whoever the client is; what people do by hand.

    Attributes:
        share_ratio: That share.
    """

    share_ratio: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.share_ratio <= 1:
            raise ConfigError(f"share_ratio must be in [0, 1], got {self.share_ratio}")

    def init(self, clients: int) -> State:
        """Nothing seen."""
        return {"latest": np.zeros(clients)}

    def observe(self, state: State, available_bytes: FloatArray) -> State:
        """Keeps the sample."""
        return {"latest": _newest(state["latest"], available_bytes)}

    def close_window(self, state: State) -> State:
        """Learns nothing."""
        return state

    def predict(self, state: State) -> IntArray:
        """A share of the latest sample."""
        return (self.share_ratio * state["latest"]).astype(np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class MeanValue:
    """Promises the plain average of all samples so far."""

    def init(self, clients: int) -> State:
        """Nothing seen."""
        return {"mean": np.zeros(clients), "samples": np.zeros(clients)}

    def observe(self, state: State, available_bytes: FloatArray) -> State:
        """Moves the mean."""
        samples = state["samples"] + ~np.isnan(available_bytes)
        step = np.where(np.isnan(available_bytes), 0.0, available_bytes - state["mean"])
        return {"mean": state["mean"] + step / np.maximum(samples, 1.0), "samples": samples}

    def close_window(self, state: State) -> State:
        """Learns nothing."""
        return state

    def predict(self, state: State) -> IntArray:
        """The mean."""
        return state["mean"].astype(np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class RunningMinimum:
    """FedHybrid's predictor: an exponential average of each window's minimum, less a margin learnt from shortfalls.

    Source: FedHybrid names a memory budget predictor and says no more; what it does here is ours. Promise = min(base,
    available now) - widening x safety. Base is an exponential average of the windows' minima. Safety follows the 0.95
    quantile of shortfalls, (min(base, available then) - the window's minimum) where positive, by stochastic
    approximation (Robbins and Monro): up by 0.95 of a step after a larger shortfall, down by 0.05 of one otherwise, a
    step being in proportion to the average distance between the two. It forgets, needs one number a client where P2
    needs ten, and has no buffer. Widening grows by a tenth of (violated - 0.05) at every window and is at least 1:
    promises that were broken in more than 5 % of recent windows become smaller. Until enough windows have ended the
    promise is half of what is available.

    Attributes:
        smoothing_ratio: Weight of the newest minimum in the base.
        quantile_ratio: The share of windows in which the margin should suffice.
        step_ratio: Of a step of the safety margin, to the average distance.
        distance_smoothing_ratio: Weight of the newest distance in the average.
        first_safety_ratio: Of the first minimum: the margin before any shortfall was seen.
        widening_gain: How quickly broken promises widen the margin.
        most_widening: Its largest value.
        cold_ratio: What is promised of the available memory at first.
        cold_windows: How many windows that lasts.
    """

    smoothing_ratio: float = 0.1
    quantile_ratio: float = 0.95
    step_ratio: float = 0.2
    distance_smoothing_ratio: float = 0.05
    first_safety_ratio: float = 0.15
    widening_gain: float = 0.1
    most_widening: float = 3.0
    cold_ratio: float = 0.5
    cold_windows: int = 5

    def __post_init__(self) -> None:
        ratios = ("smoothing_ratio", "quantile_ratio", "distance_smoothing_ratio", "cold_ratio")
        least = {"step_ratio": 0, "first_safety_ratio": 0, "widening_gain": 0, "most_widening": 1, "cold_windows": 0}
        problems = [
            f"{name} must be in [0, 1], got {getattr(self, name)}"
            for name in ratios
            if not 0 <= getattr(self, name) <= 1
        ]
        problems += [
            f"{name} must be at least {low}, got {getattr(self, name)}"
            for name, low in least.items()
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= low)
        ]
        if problems:
            raise ConfigError(problems)

    def init(self, clients: int) -> State:
        """Nothing seen; the names are those of the formula above, all bytes but `windows` and `widening`.

        `start` is what was available when the window began, `promised` what was promised then.
        """
        names = ("latest", "lowest", "start", "promised", "base", "safety", "distance", "windows")
        return {name: np.zeros(clients) for name in names} | {"widening": np.ones(clients)}

    def observe(self, state: State, available_bytes: FloatArray) -> State:
        """Moves the window's running minimum; a client's very first sample also begins its window."""
        latest = _newest(state["latest"], available_bytes)
        fresh = (state["start"] == 0) & (latest > 0)
        start = np.where(fresh, latest, state["start"])
        lowest = np.where(fresh, latest, np.minimum(state["lowest"], latest))
        promised = np.where(fresh, self.cold_ratio * latest, state["promised"])
        return state | {"latest": latest, "lowest": lowest, "start": start, "promised": promised}

    def close_window(self, state: State) -> State:
        """Learns from the window's minimum, and begins the next window at the latest sample."""
        lowest, seen = state["lowest"], state["start"] > 0
        first = seen & (state["windows"] == 0)
        base = np.where(first, lowest, state["base"])
        safety = np.where(first, self.first_safety_ratio * lowest, state["safety"])
        distance = np.where(first, self.first_safety_ratio / 2 * lowest, state["distance"])

        expected = np.minimum(base, state["start"])
        away = np.abs(expected - lowest)
        distance = distance + self.distance_smoothing_ratio * (away - distance)
        larger = np.maximum(expected - lowest, 0.0) > safety
        move = np.where(larger, self.quantile_ratio, self.quantile_ratio - 1.0)
        safety = np.maximum(safety + self.step_ratio * distance * move, 0.0)
        late = state["promised"] > lowest
        excess = np.where(state["windows"] >= self.cold_windows, late - (1.0 - self.quantile_ratio), 0.0)
        widening = np.clip(state["widening"] * np.exp(self.widening_gain * excess), 1.0, self.most_widening)
        learnt = {
            "base": base + self.smoothing_ratio * (lowest - base),
            "safety": safety,
            "distance": distance,
            "widening": widening,
            "windows": state["windows"] + 1,
            "start": state["latest"],
            "lowest": state["latest"],
        }
        after = state | {name: np.where(seen, array, state[name]) for name, array in learnt.items()}
        return after | {"promised": np.where(seen, self._promise(after), state["promised"])}

    def predict(self, state: State) -> IntArray:
        """See the class."""
        return self._promise(state).astype(np.int64)

    def _promise(self, state: State) -> FloatArray:
        latest = state["latest"]
        learnt = np.minimum(state["base"], latest) - state["widening"] * state["safety"]
        promise: FloatArray = np.where(state["windows"] < self.cold_windows, self.cold_ratio * latest, learnt)
        return np.maximum(promise, 0.0)


def _newest(latest: FloatArray, available_bytes: FloatArray) -> FloatArray:
    found: FloatArray = np.where(np.isnan(available_bytes), latest, available_bytes)
    return found


PREDICTORS: dict[str, Callable[..., Predictor]] = {
    "average": MeanValue,
    "fixed-fraction": FixedFraction,
    "last-value": LastValue,
    "running-minimum": RunningMinimum,
}


def make_predictor(name: str, options: Mapping[str, Any]) -> Predictor:
    """A row of `PREDICTORS` with these options.

    Raises:
        ConfigError: No such predictor; options that it does not have, that are no numbers, or out of their range.
    """
    taker = lookup("predictor", PREDICTORS, name)
    known = inspect.signature(taker).parameters
    words = ", ".join(known) or "none"
    problems = [
        f"{key}: predictor {name!r} has no such option.{nearest_hint(key, known)} Known: {words}."
        for key in options
        if key not in known
    ]
    for key in (key for key in options if key in known):
        wanted = int if isinstance(known[key].default, int) else (int, float)
        if isinstance(options[key], bool) or not isinstance(options[key], wanted):
            problems.append(f"{key} must be a {'whole ' if wanted is int else ''}number, got {options[key]!r}")
    if problems:
        raise ConfigError(problems)
    return taker(**options)
