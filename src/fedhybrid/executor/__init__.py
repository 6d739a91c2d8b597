"""Plans become programs: one generated function per plan that trains the model in place, inside its budget."""

from fedhybrid.executor.lower import Program, lower
from fedhybrid.executor.measure import Measurement
from fedhybrid.executor.optimizer import SGD, Adam, AdamW
from fedhybrid.executor.prepare import ACTIONS, PreparedStep, prepare_step
from fedhybrid.executor.proximal import Proximal
from fedhybrid.executor.step import TrainStep, compile_step, plan_step

__all__ = [
    "ACTIONS",
    "SGD",
    "Adam",
    "AdamW",
    "Measurement",
    "PreparedStep",
    "Program",
    "Proximal",
    "TrainStep",
    "compile_step",
    "lower",
    "plan_step",
    "prepare_step",
]
