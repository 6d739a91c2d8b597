"""Programs for batches of other shapes than the example's: captured and planned when such a batch first comes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

from fedhybrid.executor.options import PlanOptions
from fedhybrid.executor.prepare import for_batch
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.executor.running import Runner
from fedhybrid.graph import BatchSpec, batch_tensors
from fedhybrid.planner import Plan

__all__ = ["OtherShapes"]

Shapes = tuple[tuple[int, ...], ...]


@final
class OtherShapes:
    """The step for other batch shapes; model tensors, optimizer state and learning rates are the step's own."""

    def __init__(self, prepared: PreparedStep, planning: PlanOptions) -> None:
        self._main, self._planning = prepared, planning
        self._known = prepared.costs
        self._prepared: dict[Any, PreparedStep] = {}
        self._made: dict[tuple[Any, int | None], tuple[Plan, Runner]] = {}

    def runner_for(self, batch: Any, budget_bytes: int | None) -> Runner | None:
        """The program of the batch's shape within the budget; None where the step's own fits.

        Raises:
            ConfigError: Not only the shape differs, but the structure or a type.
            CaptureError: The step does not trace with this shape.
            InfeasibleBudgetError: No plan of this shape fits.
        """
        _, spec = batch_tensors(batch)
        main = self._main.spec
        if spec == main:
            return None
        key = _key(spec)
        if (key, budget_bytes) not in self._made:
            if (spec.structure, spec.dtypes) != (main.structure, main.dtypes):
                main.flatten(batch)  # raises, and says what differs
            prepared = self._prepared.get(key) or for_batch(self._main, batch, self._known)
            plan = self._plan(prepared, budget_bytes)
            self._made[key, budget_bytes] = plan, prepared.compile(plan)
            # Its batch is not needed again and must not be kept alive.
            self._prepared[key], self._known = replace(prepared, example=None), prepared.costs
        return self._made[key, budget_bytes][1]

    def _plan(self, prepared: PreparedStep, budget_bytes: int | None) -> Plan:
        if budget_bytes is None:
            return prepared.keep_all()
        return prepared.planned(budget_bytes, self._planning)

    def plans(self, budget_bytes: int | None) -> dict[Shapes, Plan]:
        """Plans within this budget so far, by the shapes of the batch's tensors."""
        return {key[0]: plan for (key, budget), (plan, _) in self._made.items() if budget == budget_bytes}


def _key(spec: BatchSpec) -> Any:
    return spec.shapes, spec.strides
