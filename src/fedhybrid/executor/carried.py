"""`PortableStep`: a training step of loaded programs, which needs nothing of capture, planner or solvers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor, nn

from fedhybrid.errors import ConfigError, PlanMismatchError
from fedhybrid.executor.bound import BoundModel
from fedhybrid.executor.portable import PortableProgram
from fedhybrid.executor.program import ProgramRunner
from fedhybrid.executor.state import OptimizerState
from fedhybrid.planner import Plan
from fedhybrid.protocols import Optimizer

__all__ = ["PortableStep"]


@final
class PortableStep:
    """Runs loaded programs on one model, bit for bit as the `TrainStep` that they were exported from.

    Attributes:
        aux: What the loss function returned beside the loss at the last call, or None.
        on_step: Is called when a step begins, its batch at hand; for measurements.
        state: The optimizer's tensors, counters and learning rates.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, first: PortableProgram) -> None:
        """Starts with one program; further ones of the same step can be added.

        Raises:
            ConfigError: The program was made for another optimizer, or the model has other tensors.
        """
        self._optimizer, self._fingerprint = optimizer, first.fingerprint
        self._programs: dict[Any, PortableProgram] = {}
        self._codec_seed = 0
        self.aux: Tensor | None = None
        self.on_step: Callable[[], None] | None = None
        self.bound = BoundModel(model, first.layouts)
        self.state = OptimizerState(optimizer, self.bound, first.trained)
        self.add(first)
        self._program = first

    def add(self, program: PortableProgram) -> None:
        """Takes one more program of the same step.

        Raises:
            PlanMismatchError: It was made for another graph.
            ConfigError: It was measured with another optimizer.
        """
        if program.fingerprint != self._fingerprint or program.plan.fingerprint != self._fingerprint:
            raise PlanMismatchError(expected=self._fingerprint, found=program.fingerprint)
        if program.optimizer != repr(self._optimizer):
            raise ConfigError(
                f"this program was made for the optimizer {program.optimizer}, here it is {self._optimizer!r}; compile "
                "the plan again"
            )
        self._programs[program.plan.key] = program
        for codec in program.runner.codecs:
            codec.reset(self._codec_seed)

    def has(self, plan: Plan) -> bool:
        """Whether the plan's program is here, and measured."""
        program = self._programs.get(plan.key)
        return program is not None and program.measured_peak_bytes is not None

    def __call__(self, *batch: Any) -> Tensor:
        """One training step on `(x, y)` or one dictionary; returns the detached scalar loss.

        Raises:
            ConfigError: The batch's shapes or types are not those that the program was made for.
        """
        given = batch[0] if len(batch) == 1 else batch
        if self.on_step is not None:
            self.on_step()
        self.bound.refresh()
        counts = dict(self.state.counts)
        self.aux = None  # the last step's may be large, and no plan counts it
        try:
            loss, self.aux = self._program.runner.run(self.bound, given, self.state.apply)
        except BaseException:
            self.state.counts = counts
            raise
        self.state.steps += 1
        return loss

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._program.plan

    @property
    def runner(self) -> ProgramRunner:
        """Runs the plan in use."""
        return self._program.runner

    def use_plan(self, plan: Plan) -> None:
        """Switches to another plan from the next step on; parameters and state stay.

        Raises:
            PlanMismatchError: The plan was made for another graph.
            ConfigError: Its program has not been added.
        """
        if plan.fingerprint != self._fingerprint:
            raise PlanMismatchError(expected=self._fingerprint, found=plan.fingerprint)
        if plan.key not in self._programs:
            raise ConfigError("this plan has no program here yet; compile it and add its program first")
        self._program = self._programs[plan.key]

    def set_lr(self, lr: float | Sequence[float]) -> None:
        """See `TrainStep.set_lr`."""
        self.state.set_lr(lr)

    def reset_optimizer(self) -> None:
        """See `TrainStep.reset_optimizer`."""
        self.bound.refresh()
        self.state.reset()

    def reset_codecs(self, seed: int) -> None:
        """See `TrainStep.reset_codecs`."""
        self._codec_seed = seed
        for program in self._programs.values():
            for codec in program.runner.codecs:
                codec.reset(seed)

    def measured_peak_bytes(self) -> int:
        """The allocator's peak of one real step by the plan in use, measured where its program was made.

        Raises:
            ConfigError: It has not been measured there.
        """
        measured = self._program.measured_peak_bytes
        if measured is None:
            raise ConfigError("this program was made without running it; make it again and measure it")
        return measured
