"""Times the samples on this machine, one thread unless asked otherwise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedhybrid.devices.measuring.fitting import fit_rates
from fedhybrid.devices.measuring.samples import samples, tiny_calls
from fedhybrid.devices.profile import KindRate
from fedhybrid.opwork import OP_KINDS, OpWork

__all__ = ["Measured", "measure_machine"]

_RUNS = 15  # the median of these, or of as many as fit into SAMPLE_S
_LEAST_RUNS = 3
SAMPLE_S = 0.15
_TINY_RUNS = 2000
_COPY_BYTES = 2**26  # larger than the caches of the devices that this is for
_LARGEST_HEAP_BLOCK_BYTES = 2**25 - 2**16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a machine did.

    Attributes:
        kinds: Rates for each of `opwork.OP_KINDS`.
        op_overhead_s: Median seconds of calls that do next to nothing.
        peak_flops_per_s: The best rate that any sample reached.
        peak_bytes_per_s: Median rate of copying tensors larger than the caches, read plus written.
        points: Work and median seconds of every sample, by name.
        threads: Of torch, while it was measured.
    """

    kinds: Mapping[str, KindRate]
    op_overhead_s: float
    peak_flops_per_s: float
    peak_bytes_per_s: float
    points: Mapping[str, tuple[OpWork, float]]
    threads: int


def measure_machine(*, threads: int = 1, on_kind: Callable[[str], None] = lambda _kind: None) -> Measured:
    """Times real operators of each kind; takes a few seconds on a fast core, at most a minute on a slow one.

    Torch's number of threads and its random generator are put back afterwards.

    Args:
        threads: Of torch. Client tasks of a simulation use one.
        on_kind: Told what is measured next: a kind of operator, "op overhead" or "bandwidth".
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return _measure(threads, on_kind)
    finally:
        torch.set_num_threads(before)


def _measure(threads: int, on_kind: Callable[[str], None]) -> Measured:
    # glibc maps large blocks anew at every call, page faults included, until one of about this size has been freed. A
    # process that trains has long done so; the samples should not pay for what happens once.
    torch.empty(_LARGEST_HEAP_BLOCK_BYTES, dtype=torch.uint8)
    on_kind("op overhead")
    overhead_s = statistics.median(_tiny_s(call) for call in tiny_calls())
    on_kind("bandwidth")
    bandwidth = _copy_bytes_per_s()
    by_kind: dict[str, list[tuple[OpWork, float]]] = {kind: [] for kind in OP_KINDS}
    points = {}
    for sample in samples():
        if not by_kind[sample.kind]:
            on_kind(sample.kind)
        call, work = sample.make()
        points[sample.name] = work, _median_s(call)
        by_kind[sample.kind].append(points[sample.name])
        del call
    kinds = {kind: fit_rates(timed, overhead_s=overhead_s) for kind, timed in by_kind.items()}
    return Measured(
        kinds=kinds,
        op_overhead_s=overhead_s,
        peak_flops_per_s=max(work.flops / seconds for work, seconds in points.values()),
        peak_bytes_per_s=bandwidth,
        points=points,
        threads=threads,
    )


def _median_s(call: Callable[[], Any]) -> float:
    call()
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or (len(seconds) < _RUNS and sum(seconds) < SAMPLE_S):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _tiny_s(call: Callable[[], Any]) -> float:
    """Median seconds of one call, timed ten at a time, as the clock itself takes a while to read."""
    seconds = []
    for _ in range(_TINY_RUNS // 10):
        start = time.perf_counter()
        for _ in range(10):
            call()
        seconds.append((time.perf_counter() - start) / 10)
    return statistics.median(seconds)


def _copy_bytes_per_s() -> float:
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _median_s(lambda: target.copy_(source))
