"""FedHybrid makes training fit: PyTorch steps inside a byte budget, alone or in a federation of unequal devices.

The names below are the public interface; each is imported when it is first used, so that `import fedhybrid` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedhybrid.collection import collection_paused

if TYPE_CHECKING:
    from fedhybrid.errors import (
        CaptureError,
        ConfigError,
        FedHybridError,
        InfeasibleBudgetError,
        PlanMismatchError,
    )
    from fedhybrid.executor import (
        SGD,
        Adam,
        AdamW,
        EagerModeWarning,
        GuardRecord,
        Measurement,
        ParamGroup,
        TrainStep,
        compile_step,
        no_decay,
        plan_step,
    )
    from fedhybrid.experiment import load_run, run
    from fedhybrid.planner import Plan

__version__ = "0.1.0"

_HOMES = {
    "SGD": "executor",
    "Adam": "executor",
    "AdamW": "executor",
    "CaptureError": "errors",
    "ConfigError": "errors",
    "EagerModeWarning": "executor",
    "FedHybridError": "errors",
    "GuardRecord": "executor",
    "InfeasibleBudgetError": "errors",
    "Measurement": "executor",
    "ParamGroup": "executor",
    "Plan": "planner",
    "PlanMismatchError": "errors",
    "TrainStep": "executor",
    "compile_step": "executor",
    "load_run": "experiment",
    "no_decay": "executor",
    "plan_step": "executor",
    "run": "experiment",
}

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CaptureError",
    "ConfigError",
    "EagerModeWarning",
    "FedHybridError",
    "GuardRecord",
    "InfeasibleBudgetError",
    "Measurement",
    "ParamGroup",
    "Plan",
    "PlanMismatchError",
    "TrainStep",
    "compile_step",
    "load_run",
    "no_decay",
    "plan_step",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        with collection_paused():
            home = import_module(f"fedhybrid.{_HOMES[name]}")
        return getattr(home, name)
    raise AttributeError(f"module 'fedhybrid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
