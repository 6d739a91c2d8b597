"""Fleets of unequal devices: budgets, speeds, who is online when, the memory that other apps leave; and the clock."""

from __future__ import annotations

from fedhybrid.fleet.availability import AlwaysOnline, Availability, DutyCycle, RandomSlots
from fedhybrid.fleet.budgets import BudgetDistribution, ChoiceBudget, SpreadBudget
from fedhybrid.fleet.clock import VirtualClock
from fedhybrid.fleet.delays import Delays, DelaySpec, arrival_probability, make_delays
from fedhybrid.fleet.fleet import Fleet
from fedhybrid.fleet.intervals import OnlineIntervals, load_intervals
from fedhybrid.fleet.making import check_fleet, deal_tiers, make_fleet
from fedhybrid.fleet.memory import FleetMemory, MemorySpec
from fedhybrid.fleet.online import AvailabilitySpec, make_availability
from fedhybrid.fleet.predictor import (
    PREDICTORS,
    FixedFraction,
    LastValue,
    MeanValue,
    Predictor,
    RunningMinimum,
    State,
    make_predictor,
)
from fedhybrid.fleet.replay import Replay, Scores, equal_fraction, promises_at_samples, replay
from fedhybrid.fleet.sampling import free_clients, sample_available
from fedhybrid.fleet.tiers import Tier, TierSpec
from fedhybrid.fleet.tracefile import load_traces
from fedhybrid.fleet.traces import MemoryTraces, TraceSpec, make_traces

__all__ = [
    "PREDICTORS",
    "AlwaysOnline",
    "Availability",
    "AvailabilitySpec",
    "BudgetDistribution",
    "ChoiceBudget",
    "DelaySpec",
    "Delays",
    "DutyCycle",
    "FixedFraction",
    "Fleet",
    "FleetMemory",
    "LastValue",
    "MeanValue",
    "MemorySpec",
    "MemoryTraces",
    "OnlineIntervals",
    "Predictor",
    "RandomSlots",
    "Replay",
    "RunningMinimum",
    "Scores",
    "SpreadBudget",
    "State",
    "Tier",
    "TierSpec",
    "TraceSpec",
    "VirtualClock",
    "arrival_probability",
    "check_fleet",
    "deal_tiers",
    "equal_fraction",
    "free_clients",
    "load_intervals",
    "load_traces",
    "make_availability",
    "make_delays",
    "make_fleet",
    "make_predictor",
    "make_traces",
    "promises_at_samples",
    "replay",
    "sample_available",
]
