"""Experiments: recipes checked, built and run, alone or side by side, and their results read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhybrid.lazy import lazily

if TYPE_CHECKING:
    from fedhybrid.experiment.build import build_federation
    from fedhybrid.experiment.check import config_toml, load_config
    from fedhybrid.experiment.comparing import compare
    from fedhybrid.experiment.config import RunConfig
    from fedhybrid.experiment.result import RunResult, load_run
    from fedhybrid.experiment.running import run
else:
    __getattr__ = lazily(
        __name__,
        {
            "RunConfig": "config",
            "RunResult": "result",
            "build_federation": "build",
            "compare": "comparing",
            "config_toml": "check",
            "load_config": "check",
            "load_run": "result",
            "run": "running",
        },
    )

__all__ = [
    "RunConfig",
    "RunResult",
    "build_federation",
    "compare",
    "config_toml",
    "load_config",
    "load_run",
    "run",
]
