"""Measures the machine that this runs on: real operators of each kind, timed, and turned into a device profile."""

from __future__ import annotations

from fedhybrid.devices.measuring.fitting import fit_rates
from fedhybrid.devices.measuring.machine import Measured, measure_machine
from fedhybrid.devices.measuring.samples import Sample, samples
from fedhybrid.devices.measuring.writing import DEFAULTS, Unmeasured, profile_text

__all__ = ["DEFAULTS", "Measured", "Sample", "Unmeasured", "fit_rates", "measure_machine", "profile_text", "samples"]
