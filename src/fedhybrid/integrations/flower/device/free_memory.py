"""What a device promises for training: what its other programs leave free, sampled here, predicted as in fleets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.fleet import make_predictor

__all__ = ["MeasuredBudget", "available_bytes"]

_SAMPLE_S = 5.0
_WINDOW_SAMPLES = 12  # a minute: as long as a round of small tasks
_LEAST_BYTES = 1  # what is promised where nothing is left: too little for any step


def available_bytes() -> int:
    """Memory that programs can have now without the system taking it from others.

    Raises:
        ConfigError: The system does not say.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError) as error:
        raise ConfigError("this system does not say how much memory is available; give --budget") from error


@final
class MeasuredBudget:
    """Calling it gives the promise in bytes; samples are taken in the background while nothing trains.

    What this program itself holds is not available any more, so the promise is for what a step needs on top.
    """

    def __init__(self, sample: Callable[[], int] = available_bytes, *, every_s: float = _SAMPLE_S) -> None:
        """Takes the first sample.

        Raises:
            ConfigError: The system does not say how much memory is available.
        """
        self._predictor = make_predictor("running-minimum", {})
        self._state = self._predictor.init(1)
        self._sample, self._every_s, self._samples, self._at_work = sample, every_s, 0, 0
        self._guard, self._stopped = threading.Lock(), threading.Event()
        self.observe()

    def __call__(self) -> int:
        """What may be promised for the next task."""
        with self._guard:
            return max(int(self._predictor.predict(self._state)[0]), _LEAST_BYTES)

    def observe(self) -> None:
        """Takes a sample, unless a task runs here, whose own memory is not that of others."""
        with self._guard:
            if self._at_work:
                return
            self._state = self._predictor.observe(self._state, np.array([float(self._sample())]))
            self._samples += 1
            if self._samples % _WINDOW_SAMPLES == 0:
                self._state = self._predictor.close_window(self._state)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Nothing is sampled inside; what is promised can be asked."""
        with self._guard:
            self._at_work += 1
        try:
            yield
        finally:
            with self._guard:
                self._at_work -= 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Samples are taken in the background inside."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.observe()
