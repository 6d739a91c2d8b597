"""What other apps leave free on every device of a fleet, from moment to moment, and what a device promises of it.

Traces come from a seed (`TraceSpec`; some hundreds of them, which clients share, each from a moment of its own) or from
a file (`tracefile.py`; client i has row i modulo the number of rows, from the file's beginning on). After its end a
trace begins again.

A trace speaks of a device's memory, a budget of what training may take of it. `scale` says how they meet:

- "budget": a trace is read as a share of its own highest sample, and training may take that share of its client's
  budget, resident bytes included. So "60%" is what a device gives while no other app runs, and it gives less, in
  proportion, while some do. Budgets stay tied to the model, and one trace serves devices of any size.
- "bytes": a trace is read as bytes that training may take, up to the client's budget: real bytes of a file as they are,
  random traces as shares of all memory of the client's device. For a budget in per cent of a small model's step that
  is hardly ever less than the budget.

At check-in a device promises what its predictor says for the window of time to come. Predictors run once over the
traces, not over clients: promises of all moments are a table as large as the traces. A promise knows the past alone:

- Random traces have a history before time 0, of the same making, which is told to the predictor and cut off: 50
  windows, or as many as the trace has where these are fewer. A device that is met for the first time knows itself.
- The traces of a file have none: predictors begin cold.

After its end a trace begins again, and so do its promises: those of the second lap are the first lap's, made from the
history and the trace's beginning, as if the device's own last lap were forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fedhybrid.errors import ConfigError
from fedhybrid.fleet.predictor import Predictor, make_predictor
from fedhybrid.fleet.replay import promises_at_samples, window_samples
from fedhybrid.fleet.tracefile import load_traces
from fedhybrid.fleet.traces import MemoryTraces, TraceSpec, free_ratios, sample_at
from fedhybrid.hashing import hashed_below
from fedhybrid.records import FloatArray, IntArray
from fedhybrid.seeds import derive_seed

__all__ = ["CheckedMemory", "FleetMemory", "MemorySpec", "check_memory", "make_memory"]

_HISTORY_WINDOWS = 50  # predictors are judged after 20; more would be paid for by every run
_MOST_ROWS = 256
_MOST_SAMPLES = 10**8
_WHOLE = 2**40  # a share of 1 in the predictor's bytes


@dataclass(frozen=True, kw_only=True)
class MemorySpec:
    """How free memory changes, as a recipe states it in `[fleet.memory]`; see the module's text.

    Attributes:
        file: Traces in a .csv or .toml file; without it they are random.
        period_s: Seconds between samples of the file (its times are put on this grid); 1 where None.
        trace: What random traces look like; `TraceSpec()` where None.
        rows: Distinct random traces; at most 256, and no more than clients, where None.
        predictor: A row of `PREDICTORS`.
        predictor_options: Its options by name.
        window_s: The time that a promise is made for, about a round's length.
        scale: "budget" or "bytes".
    """

    file: str | Path | None = None
    period_s: float | None = None
    trace: TraceSpec | None = None
    rows: int | None = None
    predictor: str = "running-minimum"
    predictor_options: Mapping[str, Any] = field(default_factory=dict)
    window_s: float = 60.0
    scale: str = "budget"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FleetMemory:
    """What training may take on each client, and what the client promises. Budgets, in bytes, are its caps.

    Attributes:
        period_s: Seconds between two samples; one holds until the next.
        window_s: The time that a promise is made for.
        left: One row a trace, one column a sample: bytes (int64), or shares (float32) of a client's unit.
        promised: The same, of promises that are made during that sample.
        unit_bytes: By tier: what a share of 1 is; None where it is the client's budget, or where rows hold bytes.
        tier: Each client's index in `unit_bytes`.
        offset_key: Where in its trace each client begins derives from it; None: at the beginning.
    """

    period_s: float
    window_s: float
    left: NDArray[np.float32] | IntArray
    promised: NDArray[np.float32] | IntArray
    unit_bytes: IntArray | None
    tier: NDArray[np.int16]
    offset_key: int | None

    def promise(self, clients: IntArray, now_s: float, *, budget_bytes: IntArray) -> IntArray:
        """Bytes that clients with these budgets promise when they check in at `now_s`."""
        return self._read(self.promised, clients, self._first(clients, now_s), budget_bytes)

    def window(self, now_s: float) -> int:
        """The number of the window of the run that `now_s` lies in, from 0 on."""
        return int(sample_at(now_s, self.window_s))

    def next_window_s(self, now_s: float) -> float:
        """When the next window of the run begins: the time to see whether there is more memory by then."""
        return (self.window(now_s) + 1) * self.window_s

    def left_bytes(self, client: int, now_s: float, *, budget_bytes: int) -> int:
        """Bytes that one client can give at `now_s`."""
        _, left = self.left_over(client, now_s, now_s, budget_bytes=budget_bytes)
        return int(left[0])

    def left_over(self, client: int, start_s: float, end_s: float, *, budget_bytes: int) -> tuple[FloatArray, IntArray]:
        """What one client can give from `start_s` to `end_s`.

        Returns:
            Times in seconds, the first of them `start_s`, the others ascending and before `end_s`; and the bytes that
            it can give from each of them to the next.
        """
        first, last = (int(sample_at(time_s, self.period_s)) for time_s in (start_s, end_s))
        times_s = np.arange(first, last + 1, dtype=np.float64) * self.period_s
        times_s[0] = start_s
        samples = np.arange(last - first + 1) + self._first(np.array([client]), start_s)
        kept = times_s < end_s
        kept[0] = True
        return times_s[kept], self._read(self.left, np.array([client]), samples[kept], np.array([budget_bytes]))

    def _first(self, clients: IntArray, now_s: float) -> IntArray:
        """The sample of its trace at which each client is, not yet modulo the trace's length."""
        samples: int = self.left.shape[1]
        offset = 0 if self.offset_key is None else hashed_below(self.offset_key, samples, clients)
        return sample_at(now_s, self.period_s) + offset + np.zeros_like(clients)

    def _read(self, table: NDArray[Any], clients: IntArray, samples: IntArray, budget_bytes: IntArray) -> IntArray:
        rows, columns = table.shape
        found = table[np.asarray(clients) % rows, samples % columns]
        if self.left.dtype == np.float32:
            unit = budget_bytes if self.unit_bytes is None else self.unit_bytes[self.tier[clients]]
            found = (found.astype(np.float64) * unit).astype(np.int64)
        least: IntArray = np.minimum(found, budget_bytes)
        return least


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedMemory:
    """A spec that was found to be sound. `traces` are the file's; None for random ones, of which there are `rows`."""

    spec: MemorySpec
    predictor: Predictor
    traces: MemoryTraces | None
    trace: TraceSpec
    rows: int


def check_memory(spec: MemorySpec, clients: int) -> CheckedMemory:
    """Checks a spec and reads its file.

    Raises:
        ConfigError: Options that do not go together or are out of their range, no such predictor, what is wrong with
            the file; all at once.
    """
    problems = _option_problems(spec)
    trace, traces, predictor = spec.trace or TraceSpec(), None, None
    period_s, duration_s = trace.period_s, trace.duration_s
    try:
        if spec.file is not None:
            traces = load_traces(Path(spec.file), period_s=1.0 if spec.period_s is None else spec.period_s)
            period_s, duration_s = traces.period_s, traces.duration_s
        elif found := trace.problems():
            raise ConfigError(found)
    except ConfigError as error:
        problems += [f"fleet.memory: {problem}" for problem in error.problems]
    else:
        try:
            window_samples(spec.window_s, period_s=period_s, duration_s=duration_s)
        except ConfigError as error:
            problems += [f"fleet.memory.window_s: {error}"]
    try:
        predictor = make_predictor(spec.predictor, spec.predictor_options)
    except ConfigError as error:
        at = "predictor" if "unknown predictor" in str(error) else "predictor_options"
        problems += [f"fleet.memory.{at}: {problem}" for problem in error.problems]
    rows = spec.rows if spec.rows is not None else min(clients, _MOST_ROWS)
    if not problems and spec.file is None and rows * duration_s / period_s > _MOST_SAMPLES:
        problems.append(
            f"fleet.memory.rows: {rows} traces of {duration_s / period_s:.0f} samples are more than {_MOST_SAMPLES} "
            "samples; use fewer or shorter traces"
        )
    if problems or predictor is None:
        raise ConfigError(problems)
    return CheckedMemory(spec=spec, predictor=predictor, traces=traces, trace=trace, rows=rows)


def _option_problems(spec: MemorySpec) -> list[str]:
    found = []
    if spec.scale not in ("budget", "bytes"):
        found.append(f'fleet.memory.scale must be "budget" or "bytes", got {spec.scale!r}')
    if spec.rows is not None and spec.rows < 1:
        found.append(f"fleet.memory.rows must be at least 1, got {spec.rows}")
    if spec.file is not None:
        random_only = {"rows": spec.rows, "trace": spec.trace}
        found += [
            f"fleet.memory.{name} is for random traces; leave it out where fleet.memory.file names some"
            for name, value in random_only.items()
            if value is not None
        ]
    elif spec.period_s is not None:
        found.append("fleet.memory.period_s is for traces of a file; that of random ones is trace.period_s")
    return found


def make_memory(plan: CheckedMemory, tier: NDArray[np.int16], memory_bytes: Sequence[int], seed: int) -> FleetMemory:
    """Traces and promises for a fleet.

    Args:
        plan: What `check_memory` gave.
        tier: Each client's tier.
        memory_bytes: Of the device of each tier.
        seed: The run's.
    """
    spec, traces = plan.spec, plan.traces
    period_s = plan.trace.period_s if traces is None else traces.period_s
    history = 0
    free: NDArray[Any]
    if traces is None:
        history = _history_samples(plan)
        free = free_ratios(plan.trace, plan.rows, seed=seed, history_samples=history)
    else:
        free = traces.available_bytes
    in_bytes = traces is not None and spec.scale == "bytes"
    if spec.scale == "budget":
        # More than the budget was never to be had, also not before time 0.
        free = np.minimum(free / free[:, history:].max(axis=1, keepdims=True), 1.0)
    known: NDArray[Any] = free if in_bytes else free.astype(np.float32)
    told: IntArray = known if in_bytes else (known.astype(np.float64) * _WHOLE).astype(np.int64)
    promised: NDArray[Any] = promises_at_samples(
        plan.predictor,
        MemoryTraces(period_s=period_s, available_bytes=told),
        window_s=spec.window_s,
        history_samples=history,
    )
    by_device = traces is None and spec.scale == "bytes"
    return FleetMemory(
        period_s=period_s,
        window_s=spec.window_s,
        left=np.ascontiguousarray(known[:, history:]),
        promised=promised if in_bytes else (promised / _WHOLE).astype(np.float32),
        unit_bytes=np.array(memory_bytes, dtype=np.int64) if by_device else None,
        tier=tier,
        offset_key=derive_seed(seed, purpose="memory offset") if traces is None else None,
    )


def _history_samples(plan: CheckedMemory) -> int:
    """Whole windows before time 0, in samples."""
    trace = plan.trace
    samples = window_samples(plan.spec.window_s, period_s=trace.period_s, duration_s=trace.duration_s)
    return samples * min(_HISTORY_WINDOWS, int(trace.duration_s / plan.spec.window_s + 1e-6))
