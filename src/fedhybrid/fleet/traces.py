"""Memory that a device's other apps leave free, over time: random traces that look like use, and their container."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from fedhybrid.errors import ConfigError
from fedhybrid.records import FloatArray, IntArray
from fedhybrid.seeds import derive_seed

__all__ = ["MemoryTraces", "TraceSpec", "free_ratios", "make_traces", "sample_at"]

_ROUNDING = 1e-6  # of a sample: 0.3 s is the third sample of 0.1 s, whatever binary fractions say


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryTraces:
    """Available bytes of many devices, all sampled at the same times; after its end a trace starts again.

    Eight bytes a sample: a thousand devices for six hours at 2 s are 86 MB. A fleet of a million shares a thousand
    traces by giving each device a row and a time offset (`at` takes both as arrays).

    Attributes:
        period_s: Seconds between two samples; a sample holds until the next.
        available_bytes: One row a device, one column a sample.
    """

    period_s: float
    available_bytes: IntArray

    def __len__(self) -> int:
        return len(self.available_bytes)

    @property
    def duration_s(self) -> float:
        """Of one pass through the traces."""
        samples: int = self.available_bytes.shape[1]
        return self.period_s * samples

    def at(self, time_s: float | FloatArray, row: IntArray | None = None) -> IntArray:
        """Bytes available at `time_s`, of all rows or of those in `row`; one time for all or one for each."""
        rows = np.arange(len(self)) if row is None else row
        sample = sample_at(time_s, self.period_s) % self.available_bytes.shape[1]
        found: IntArray = self.available_bytes[rows, sample]
        return found

    def lowest(self, start_s: float, duration_s: float) -> IntArray:
        """The least bytes available at any moment of that time, for each row."""
        first, last = math.floor(start_s / self.period_s), math.ceil((start_s + duration_s) / self.period_s)
        samples = np.arange(first, max(last, first + 1)) % self.available_bytes.shape[1]
        found: IntArray = self.available_bytes[:, samples].min(axis=1)
        return found


@dataclass(frozen=True, kw_only=True)
class TraceSpec:
    """What random traces look like. Ours, not fitted to measurements.

    A share of the memory is free when only the system runs, and drifts slowly. Apps come as a Poisson process, take a
    log-normal amount and stay for a heavy-tailed (Pareto) time: most are gone soon, some stay for hours. Devices differ
    in how often apps come and how large they are, because their users differ.

    Attributes:
        duration_s: Of a trace.
        period_s: Between samples.
        free_low_ratio, free_high_ratio: The share of all memory that is free without apps, uniform over devices.
        drift_ratio: Standard deviation of the drift, as a share of all memory.
        drift_s: Time in which the drift forgets where it was.
        apps_per_h: How often apps come on the mean device.
        app_ratio: Median share of all memory that an app takes.
        app_spread: Standard deviation of the logarithm of an app's size.
        stay_s: The shortest stay of an app.
        stay_exponent: Of the Pareto distribution; the smaller, the longer the longest stays. Above 1.
        user_spread: Standard deviation over devices of the logarithm of `apps_per_h`; sizes have 0.4 of it. 0 makes all
            users alike.
        least_ratio: The system never leaves less than this share: it ends apps instead.
    """

    duration_s: float = 4 * 3600.0
    period_s: float = 2.0
    free_low_ratio: float = 0.45
    free_high_ratio: float = 0.75
    drift_ratio: float = 0.03
    drift_s: float = 1800.0
    apps_per_h: float = 12.0
    app_ratio: float = 0.06
    app_spread: float = 0.6
    stay_s: float = 20.0
    stay_exponent: float = 1.5
    user_spread: float = 1.0
    least_ratio: float = 0.03

    def problems(self) -> list[str]:
        """What is wrong with the figures, in words."""
        may_be_zero = {"drift_ratio", "apps_per_h", "app_spread", "user_spread"}
        found = []
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0 or (value == 0 and field.name not in may_be_zero):
                wanted = "zero or more" if field.name in may_be_zero else "positive"
                found.append(f"memory trace: {field.name} must be a {wanted} number, got {value}")
        if not found:
            if not self.least_ratio <= self.free_low_ratio <= self.free_high_ratio <= 1:
                found.append(
                    "memory trace: least_ratio, free_low_ratio, free_high_ratio and 1 must be in this order, got "
                    f"{self.least_ratio}, {self.free_low_ratio}, {self.free_high_ratio}"
                )
            if self.stay_exponent <= 1:
                found.append(f"memory trace: stay_exponent must be above 1, got {self.stay_exponent}")
            if self.duration_s < self.period_s:
                found.append(f"memory trace: duration_s {self.duration_s} is shorter than period_s {self.period_s}")
        return found


def make_traces(spec: TraceSpec, memory_bytes: IntArray, *, seed: int) -> MemoryTraces:
    """One random trace for each device.

    A device's trace depends on the seed, its number and its memory, and not on the other devices.

    Args:
        spec: What they look like.
        memory_bytes: All memory of each device.
        seed: The run's.

    Raises:
        ConfigError: Figures of the spec that make no sense; all of them.
    """
    free = free_ratios(spec, len(memory_bytes), seed=seed)
    available: NDArray[np.int64] = (free * np.asarray(memory_bytes)[:, None]).astype(np.int64)
    return MemoryTraces(period_s=spec.period_s, available_bytes=available)


def free_ratios(spec: TraceSpec, rows: int, *, seed: int, history_samples: int = 0) -> FloatArray:
    """The share of all memory that is free on each of `rows` devices, one column a sample; see `make_traces`.

    Args:
        spec: What they look like.
        rows: How many.
        seed: The run's.
        history_samples: So many more columns come first: what happened on the devices before time 0.

    Raises:
        ConfigError: As `make_traces`.
    """
    if problems := spec.problems():
        raise ConfigError(problems)
    columns = history_samples + _samples(spec)
    if history_samples:
        spec = replace(spec, duration_s=(columns + 0.5) * spec.period_s)  # half a sample more, against rounding
    each = [
        _free_ratio(spec, np.random.default_rng(derive_seed(seed, purpose="memory trace", client=number)))
        for number in range(rows)
    ]
    return np.array(each).reshape(rows, columns)


def sample_at(time_s: float | FloatArray, period_s: float) -> IntArray:
    """The number of the sample that holds at `time_s`, counted from time 0."""
    found: IntArray = np.floor(np.asarray(time_s) / period_s + _ROUNDING).astype(np.int64)
    return found


def _samples(spec: TraceSpec) -> int:
    return math.floor(spec.duration_s / spec.period_s)


def _free_ratio(spec: TraceSpec, rng: np.random.Generator) -> FloatArray:
    """Share of the memory that is free, sample by sample."""
    count = _samples(spec)
    user, size = rng.normal(size=2) * spec.user_spread
    idle = rng.uniform(spec.free_low_ratio, spec.free_high_ratio)
    knots = rng.normal(0.0, spec.drift_ratio, size=2 + math.ceil(spec.duration_s / spec.drift_s))
    times_s = np.arange(count) * spec.period_s
    drift = np.interp(times_s, np.arange(len(knots)) * spec.drift_s, knots)
    # Apps that came before the trace begins may still be there; the mean of the rate stays that of the spec.
    before_s = spec.duration_s / 4
    rate_per_s = spec.apps_per_h / 3600 * math.exp(user - spec.user_spread**2 / 2)
    apps = rng.poisson(rate_per_s * (spec.duration_s + before_s))
    start_s = rng.uniform(-before_s, spec.duration_s, size=apps)
    end_s = start_s + spec.stay_s * (1 + rng.pareto(spec.stay_exponent, size=apps))
    taken = spec.app_ratio * np.exp(0.4 * size + spec.app_spread * rng.normal(size=apps))
    change = np.zeros(count + 1)
    np.add.at(change, _sample_of(start_s, spec.period_s, count), taken)
    np.add.at(change, _sample_of(end_s, spec.period_s, count), -taken)
    free: FloatArray = np.clip(idle + drift - change.cumsum()[:count], spec.least_ratio, 1.0)
    return free


def _sample_of(times_s: FloatArray, period_s: float, count: int) -> IntArray:
    return np.clip(np.ceil(times_s / period_s), 0, count).astype(np.int64)
