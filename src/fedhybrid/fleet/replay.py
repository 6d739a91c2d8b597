"""Judges a predictor on traces: how often its promise is broken, and how much memory it leaves unused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.fleet.predictor import FixedFraction, Predictor
from fedhybrid.fleet.traces import MemoryTraces
from fedhybrid.records import FloatArray, IntArray

__all__ = ["Replay", "Scores", "equal_fraction", "promises_at_samples", "replay", "window_samples"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Two numbers that pull in opposite directions.

    Attributes:
        violation_ratio: Share of windows in which less was available than promised at some moment.
        unused_ratio: Mean over windows of (least available - promised) / least available, 0 where violated.
    """

    violation_ratio: float
    unused_ratio: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """What was promised at each window's beginning and what was available at its worst moment, bytes by client."""

    promised_bytes: IntArray
    lowest_bytes: IntArray

    def scores(self, *, skip_windows: int) -> Scores:
        """Over all clients and windows but the first ones, in which a predictor learns."""
        promised, lowest = self.promised_bytes[:, skip_windows:], self.lowest_bytes[:, skip_windows:]
        if promised.size == 0:
            raise ConfigError(
                f"a replay of {self.promised_bytes.shape[1]} windows has none left after the first {skip_windows}; use "
                "longer traces or shorter windows"
            )
        unused = np.maximum(lowest - promised, 0) / np.maximum(lowest, 1)
        return Scores(violation_ratio=float((promised > lowest).mean()), unused_ratio=float(unused.mean()))


def replay(predictor: Predictor, traces: MemoryTraces, *, window_s: float) -> Replay:
    """Tells the predictor one pass through the traces, sample by sample, window after window.

    A promise is made right before a window begins, and holds for the whole window; the first one has seen one sample.

    Raises:
        ConfigError: The window is no whole number of samples, or longer than the traces.
    """
    samples = window_samples(window_s, period_s=traces.period_s, duration_s=traces.duration_s)
    windows = traces.available_bytes.shape[1] // samples
    state = predictor.init(len(traces))
    available: FloatArray = traces.available_bytes.astype(np.float64)
    state = predictor.observe(state, available[:, 0])
    promised = []
    for window in range(windows):
        promised.append(predictor.predict(state))
        for sample in range(window * samples, (window + 1) * samples):
            state = predictor.observe(state, available[:, sample])
        state = predictor.close_window(state)
    shaped = traces.available_bytes[:, : windows * samples].reshape(len(traces), windows, samples)
    return Replay(promised_bytes=np.array(promised).T, lowest_bytes=shaped.min(axis=2))


def promises_at_samples(
    predictor: Predictor, traces: MemoryTraces, *, window_s: float, history_samples: int = 0
) -> IntArray:
    """What would be promised for a window that begins at each sample, from nothing but what was before.

    The predictor is told the traces once, from their first sample on, in windows that follow each other. A promise at a
    sample has seen that sample, and the windows that ended before; without any history the first ones are cold.

    Args:
        predictor: Whose promises.
        traces: What is available.
        window_s: Of a promise.
        history_samples: The first so many samples are told, and no promises are asked for at them.

    Returns:
        Bytes: one row a device, one column for each sample after the history.

    Raises:
        ConfigError: As `replay`.
    """
    samples = window_samples(window_s, period_s=traces.period_s, duration_s=traces.duration_s)
    promised = np.empty_like(traces.available_bytes[:, history_samples:])
    state = predictor.init(len(traces))
    for told in range(traces.available_bytes.shape[1]):
        state = predictor.observe(state, traces.available_bytes[:, told].astype(np.float64))
        if (told + 1) % samples == 0:
            state = predictor.close_window(state)
        if told >= history_samples:
            promised[:, told - history_samples] = predictor.predict(state)
    return promised


def window_samples(window_s: float, *, period_s: float, duration_s: float) -> int:
    """Samples of a window.

    Raises:
        ConfigError: The window is no whole number of samples, or longer than the traces.
    """
    samples = round(window_s / period_s) if math.isfinite(window_s) else 0
    fits = samples >= 1 and samples * period_s <= duration_s * (1 + 1e-9)
    if not (fits and math.isclose(samples * period_s, window_s, rel_tol=1e-6)):
        raise ConfigError(
            f"a window of {window_s:g} s must hold whole samples ({period_s:g} s each) and fit into the traces "
            f"({duration_s:g} s)"
        )
    return samples


def equal_fraction(traces: MemoryTraces, *, window_s: float, skip_windows: int, violation_ratio: float) -> float:
    """The fixed fraction that is violated as often as asked for on these very traces, found by bisection.

    It is tuned with hindsight, which no device has: the fairest rival of a predictor with that many violations.
    """
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        found = replay(FixedFraction(share_ratio=middle), traces, window_s=window_s).scores(skip_windows=skip_windows)
        low, high = (middle, high) if found.violation_ratio <= violation_ratio else (low, middle)
    return low
