"""Plans become programs: one generated function per plan that trains the model in place, inside its budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhybrid.lazy import lazily

if TYPE_CHECKING:
    from fedhybrid.executor.carried import PortableStep
    from fedhybrid.executor.compile import compile_step, plan_step
    from fedhybrid.executor.eager import EagerModeWarning
    from fedhybrid.executor.groups import ParamGroup, no_decay
    from fedhybrid.executor.guard import GuardRecord
    from fedhybrid.executor.measure import Measurement
    from fedhybrid.executor.optimizer import SGD, Adam, AdamW
    from fedhybrid.executor.options import ACTIONS, LOSS_FREE, PlanOptions
    from fedhybrid.executor.portable import PortableProgram, export_program, load_program
    from fedhybrid.executor.prepare import prepare_step
    from fedhybrid.executor.prepared import PreparedStep
    from fedhybrid.executor.program import Program
    from fedhybrid.executor.proximal import Proximal
    from fedhybrid.executor.step import TrainStep
    from fedhybrid.executor.wrapped import WrappedOptimizer
else:
    __getattr__ = lazily(
        __name__,
        {
            "ACTIONS": "options",
            "Adam": "optimizer",
            "AdamW": "optimizer",
            "EagerModeWarning": "eager",
            "GuardRecord": "guard",
            "LOSS_FREE": "options",
            "Measurement": "measure",
            "ParamGroup": "groups",
            "PlanOptions": "options",
            "PortableProgram": "portable",
            "PortableStep": "carried",
            "PreparedStep": "prepared",
            "Program": "program",
            "Proximal": "proximal",
            "SGD": "optimizer",
            "TrainStep": "step",
            "WrappedOptimizer": "wrapped",
            "compile_step": "compile",
            "export_program": "portable",
            "load_program": "portable",
            "no_decay": "groups",
            "plan_step": "compile",
            "prepare_step": "prepare",
        },
    )

__all__ = [
    "ACTIONS",
    "LOSS_FREE",
    "SGD",
    "Adam",
    "AdamW",
    "EagerModeWarning",
    "GuardRecord",
    "Measurement",
    "ParamGroup",
    "PlanOptions",
    "PortableProgram",
    "PortableStep",
    "PreparedStep",
    "Program",
    "Proximal",
    "TrainStep",
    "WrappedOptimizer",
    "compile_step",
    "export_program",
    "load_program",
    "no_decay",
    "plan_step",
    "prepare_step",
]
