"""Fleets of unequal devices and their clock."""

from __future__ import annotations

from fedhybrid.fleet.clock import VirtualClock
from fedhybrid.fleet.fleet import Fleet, Tier, TierSpec, make_fleet

__all__ = ["Fleet", "Tier", "TierSpec", "VirtualClock", "make_fleet"]
