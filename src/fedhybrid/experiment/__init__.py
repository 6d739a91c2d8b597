"""Experiments: recipes checked, built and run, alone or side by side, and their results read back."""

from __future__ import annotations

from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import config_toml, load_config
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.result import RunResult, load_run
from fedhybrid.experiment.run import run

__all__ = ["RunConfig", "RunResult", "build_federation", "config_toml", "load_config", "load_run", "run"]
