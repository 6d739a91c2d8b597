"""One submodel on a device: its module, and the programs of its plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from fedhybrid.engine.runtime import Station
from fedhybrid.errors import ConfigError, FedHybridError, InfeasibleBudgetError
from fedhybrid.executor import PortableProgram, PortableStep
from fedhybrid.integrations.flower.device.compiling import Compiler
from fedhybrid.planner import Plan
from fedhybrid.protocols import Submodel
from fedhybrid.tree import buffers_of, tensors_of

__all__ = ["Place"]


@final
class Place:
    """Where a device trains one submodel.

    Attributes:
        step: Runs its programs.
        station: The same as a workbench has it.
        unplanned: The plan that decides nothing.
    """

    def __init__(self, submodel: Submodel, compiler: Compiler) -> None:
        """Makes the unplanned program where the home has none yet.

        Raises:
            ConfigError: As `Compiler.programs`.
            CaptureError: The submodel's step cannot be captured.
        """
        self._compiler = compiler
        first = _good(compiler.programs({"unplanned": None})["unplanned"])
        self.unplanned = first.plan
        self._plans: dict[str, tuple[str, Plan]] = {}  # text and plan, by the names that jobs call them
        self.step = PortableStep(submodel.module, submodel.optimizer, first)
        self.fingerprint = first.fingerprint
        self.station = Station(step=self.step, tensors=tensors_of(submodel.module), buffers=buffers_of(submodel.module))

    def compile(self, plans: Mapping[str, str]) -> None:
        """Makes programs of plans that have none yet, all in one workshop; a plan known by its name is not read again.

        Args:
            plans: JSON by the names that jobs call them.

        Raises:
            ConfigError: Something that is no plan for this step.
            PlanMismatchError: A plan for another step.
            InfeasibleBudgetError: A plan needs more here than the budget that it was made for.
        """
        new = {name: text for name, text in plans.items() if self._plans.get(name, ("",))[0] != text}
        read = {name: Plan.from_json(text) for name, text in new.items()}
        wanted = {name: plan for name, plan in read.items() if not self.step.has(plan)}
        for program in self._compiler.programs(wanted).values() if wanted else ():
            self.step.add(_good(program))
        for name, plan in read.items():
            self._check(plan)
            self._plans[name] = (new[name], plan)

    def measure_unplanned(self) -> None:
        """Has the unplanned step run once, now that a task wants it."""
        if not self.step.has(self.unplanned):
            self.step.add(_good(self._compiler.programs({"unplanned": self.unplanned})["unplanned"]))

    def program(self, plan: str | None) -> Plan:
        """The plan of that name; for None, the one that decides nothing.

        Raises:
            ConfigError: It has not come.
        """
        if plan is None:
            return self.unplanned
        if plan not in self._plans:
            raise ConfigError(f"the task runs by plan {plan!r}, which has not come with it")
        return self._plans[plan][1]

    def _check(self, plan: Plan) -> None:
        self.step.use_plan(plan)
        needed_bytes = self.step.measured_peak_bytes()
        if plan.budget_bytes is not None and needed_bytes > plan.budget_bytes:
            raise InfeasibleBudgetError(needed_bytes=needed_bytes, budget_bytes=plan.budget_bytes, blocker=plan.peak_op)


def _good(program: PortableProgram | FedHybridError) -> PortableProgram:
    if isinstance(program, FedHybridError):
        raise program
    return program
