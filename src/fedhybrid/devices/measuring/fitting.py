"""Two rates from timed operators of one kind: the roofline that is nearest to what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedhybrid.devices.profile import KindRate
from fedhybrid.opwork import OpWork

__all__ = ["fit_rates"]

FloatArray = NDArray[np.float64]

_STEPS = 121  # of the grid, over the range from the slowest point to the fastest: at most a few per cent between two
_LEAST_S = 1e-9


def fit_rates(timed: Sequence[tuple[OpWork, float]], *, overhead_s: float) -> KindRate:
    """The rates with the smallest squared error of the logarithm of time, so that small operators count as large ones.

    Time is modelled as `overhead_s` plus the larger of compute and memory time, as `DeviceProfile.op_time_s` does.
    Where the points do not say how fast one of the two is, because the other one always takes longer, it gets the
    largest of the rates that fit as well.

    Args:
        timed: Work and seconds of operators of one kind, at least one.
        overhead_s: What any call takes.

    >>> points = [(OpWork("mm", 2e9, 10), 1.0), (OpWork("mm", 10.0, 4 * 10**9), 2.0)]
    >>> rate = fit_rates(points, overhead_s=0.0)
    >>> abs(rate.flops_per_s / 2e9 - 1) < 0.03, abs(rate.bytes_per_s / 2e9 - 1) < 0.03
    (True, True)
    """
    flops = np.array([work.flops for work, _ in timed])
    moved = np.array([float(work.moved_bytes) for work, _ in timed])
    measured_s = np.array([seconds for _, seconds in timed])
    busy_s = np.maximum(measured_s - overhead_s, 0.1 * measured_s + _LEAST_S)
    by_flops, by_bytes = _grid(flops / busy_s), _grid(moved / busy_s)
    compute_s = flops[None, :] / by_flops[:, None]
    memory_s = moved[None, :] / by_bytes[:, None]
    model_s = overhead_s + np.maximum(compute_s[:, None, :], memory_s[None, :, :])
    error = np.square(np.log(model_s / measured_s)).sum(axis=2)
    good = np.argwhere(error <= error.min() * (1 + 1e-6) + 1e-12)
    best = good[np.argmax(good.sum(axis=1))]
    return KindRate(flops_per_s=float(by_flops[best[0]]), bytes_per_s=float(by_bytes[best[1]]))


def _grid(rates: FloatArray) -> FloatArray:
    """Rates from half the slowest to twice the fastest, evenly in the logarithm."""
    grid: FloatArray = np.geomspace(rates.min() / 2, rates.max() * 2, _STEPS)
    return grid
