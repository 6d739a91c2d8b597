"""Planned against eager on the same batch: bytes by the allocator's events, interleaved seconds, every bit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedhybrid.executor.reference import EagerStep

if TYPE_CHECKING:
    from fedhybrid.executor.step import TrainStep

__all__ = ["Measurement", "measure_step"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What really happened.

    Attributes:
        peak_bytes: Allocator's peak of one planned step, resident bytes included.
        eager_peak_bytes: The same of one eager step with torch.optim, gradients None before it.
        step_time_s, eager_step_time_s: Medians of interleaved runs.
        gradient_error: Relative L2 distance of the planned gradient from the eager one.
        bit_identical: Parameters, buffers, optimizer state and loss after one step equal eager's bit for bit.
    """

    peak_bytes: int
    step_time_s: float
    eager_peak_bytes: int
    eager_step_time_s: float
    gradient_error: float
    bit_identical: bool

    @property
    def time_ratio(self) -> float:
        """Planned over eager seconds."""
        return self.step_time_s / self.eager_step_time_s


def measure_step(step: TrainStep, *, repeats: int) -> Measurement:
    """See `TrainStep.measure`."""
    planned_peak = step.measured_peak_bytes()
    eager = EagerStep(step.prepared, step.state)
    error = _gradient_error(step, eager)
    with step.preserved():
        torch.manual_seed(0)
        loss = step.run_example()
        torch.manual_seed(0)
        eager_loss = eager.run()
        same = torch.equal(loss, eager_loss) and eager.equals(step.prepared.model, step.state)
        eager_peak = step.prepared.resident_bytes + eager.allocated_peak()
        seconds: list[float] = []
        eager_seconds: list[float] = []
        for _ in range(repeats):
            eager_seconds.append(_timed(eager.run))
            seconds.append(_timed(step.run_example))
    return Measurement(
        peak_bytes=planned_peak,
        step_time_s=statistics.median(seconds),
        eager_peak_bytes=eager_peak,
        eager_step_time_s=statistics.median(eager_seconds),
        gradient_error=error,
        bit_identical=same,
    )


def _gradient_error(step: TrainStep, eager: EagerStep) -> float:
    buffers = {name: buffer.clone() for name, buffer in eager.model.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        planned = step.gradients()
        torch.set_rng_state(state)
        exact = eager.gradients()
    with torch.no_grad():
        for name, buffer in eager.model.named_buffers():
            buffer.copy_(buffers[name])
    difference = sum(float((planned[n] - exact[n]).double().square().sum()) for n in exact)
    size = sum(float(g.double().square().sum()) for g in exact.values())
    return float((difference / size) ** 0.5) if size else 0.0


def _timed(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
