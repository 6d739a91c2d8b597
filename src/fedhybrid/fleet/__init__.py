"""Fleets of unequal devices, their clock, and the memory that their other apps leave free."""

from __future__ import annotations

from collections.abc import Callable

from fedhybrid.fleet.clock import VirtualClock
from fedhybrid.fleet.fleet import Fleet, Tier, TierSpec, make_fleet
from fedhybrid.fleet.predictor import FixedFraction, LastValue, MeanValue, Predictor, RunningMinimum, State
from fedhybrid.fleet.replay import Replay, Scores, equal_fraction, replay
from fedhybrid.fleet.tracefile import load_traces
from fedhybrid.fleet.traces import MemoryTraces, TraceSpec, make_traces

__all__ = [
    "PREDICTORS",
    "FixedFraction",
    "Fleet",
    "LastValue",
    "MeanValue",
    "MemoryTraces",
    "Predictor",
    "Replay",
    "RunningMinimum",
    "Scores",
    "State",
    "Tier",
    "TierSpec",
    "TraceSpec",
    "VirtualClock",
    "equal_fraction",
    "load_traces",
    "make_fleet",
    "make_traces",
    "replay",
]

PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "average": MeanValue,
    "fixed-fraction": FixedFraction,
    "last-value": LastValue,
    "running-minimum": RunningMinimum,
}
