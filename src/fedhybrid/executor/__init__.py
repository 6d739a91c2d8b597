"""Plans become programs: one generated function per plan that trains the model in place, inside its budget."""

from fedhybrid.executor.compile import compile_step, plan_step
from fedhybrid.executor.eager import EagerModeWarning
from fedhybrid.executor.groups import ParamGroup, no_decay
from fedhybrid.executor.guard import GuardRecord
from fedhybrid.executor.lower import Program, lower
from fedhybrid.executor.measure import Measurement
from fedhybrid.executor.optimizer import SGD, Adam, AdamW
from fedhybrid.executor.options import ACTIONS, LOSS_FREE, PlanOptions
from fedhybrid.executor.prepare import prepare_step
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.executor.proximal import Proximal
from fedhybrid.executor.step import TrainStep

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
    "PreparedStep",
    "Program",
    "Proximal",
    "TrainStep",
    "compile_step",
    "lower",
    "no_decay",
    "plan_step",
    "prepare_step",
]
