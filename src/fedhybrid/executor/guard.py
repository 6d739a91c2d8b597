"""The guard of lossy plans: every so often, the same batch's gradient is also computed exactly, and compared.

What codecs do to a gradient was measured before the training began, and changes while weights change. The guard keeps
the cap honest: where the real error is above it, a milder plan is made; where it is far below, a bolder one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.executor.running import Apply
from fedhybrid.executor.sketch import GradientSketch, sketch_of
from fedhybrid.graph import batch_tensors
from fedhybrid.units import format_bytes

if TYPE_CHECKING:
    from fedhybrid.executor.step import TrainStep

__all__ = ["GUARD_BYTES", "GradientGuard", "GuardRecord", "Watch"]

GUARD_BYTES = 2**18  # two sketches and the scratch of adding to them; kept free of plans that are guarded

_RELAX_BELOW = 0.5  # of the cap
_AIM = 0.8  # of the cap: where a new plan's error should lie
_LARGEST_CHANGE, _LARGEST_CAP = 4.0, 0.9


@dataclass(frozen=True, kw_only=True)
class GuardRecord:
    """One look at the gradient.

    Attributes:
        step: How many steps had been done before.
        predicted_error: Of the plan in use, relative L2 over the whole gradient.
        measured_error: Between the step's gradient and the exact one on the same batch; None if it is no number.
        cap: What is allowed.
        planning_cap: The cap that plans are made with from now on.
        outcome: "kept"; "tightened" or "relaxed" (another plan was made); "stuck": above the cap, and no milder plan
            was found within the budget; "no room": nothing was measured, because the exact gradient does not fit the
            budget of the moment.
    """

    step: int
    predicted_error: float
    measured_error: float | None
    cap: float
    planning_cap: float
    outcome: str


@final
class GradientGuard:
    """Looks after one step.

    Attributes:
        records: What was found so far.
    """

    def __init__(self, step: TrainStep, every: int, cap: float) -> None:
        problems = []
        if every < 1:
            problems.append(f"guard_every must be at least 1 (steps), got {every}")
        if not isinstance(step.prepared, PreparedStep):
            problems.append("guard_every needs a captured program; the eager mode has no lossy plans")
        if not 0 < cap < math.inf:
            problems.append(f"guard_every needs max_gradient_error between 0 and 1 to hold, got {cap}")
        if problems:
            raise ConfigError(problems)
        assert isinstance(step.prepared, PreparedStep)
        self.records: list[GuardRecord] = []
        self._step, self._every, self._cap, self._planning_cap = step, every, cap, cap
        self._exact_plan = step.prepared.smallest(actions=("recompute",))
        copied = sum(t.nbytes for t in (*batch_tensors(step.prepared.example)[0], *step.prepared.model.buffers()))
        self._needed_bytes = self._exact_plan.peak_bytes + copied + GUARD_BYTES
        if not self._has_room:
            raise ConfigError(
                f"guard_every compares with the exact gradient, which needs {format_bytes(self._needed_bytes)}; the "
                f"budget is {format_bytes(step.plan.budget_bytes or 0)}. Raise the budget, or train without the guard."
            )

    @property
    def _has_room(self) -> bool:
        budget_bytes = self._step.plan.budget_bytes
        return budget_bytes is None or self._needed_bytes <= budget_bytes

    def due(self, steps_done: int) -> bool:
        """Whether the next step is to be looked at."""
        if steps_done % self._every or not self._step.plan.lossy:
            return False
        if not self._has_room:
            self._write(self._step.plan.gradient_error or 0.0, None, "no room", steps_done)
        return self._has_room

    def watch(self, batch: Any) -> Watch:
        """Computes a batch's exact gradient; the step that follows is to apply its own through what this returns.

        Model, batch and generator stay as they are.
        """
        exact = sketch_of(self._step.compiled(self._exact_plan), self._step.bound, batch)
        return Watch(self, exact, self._step.state.apply)

    def judge(self, measured_error: float) -> None:
        """Writes down how far the step's gradient was off, and plans again where that calls for it."""
        step, outcome = self._step, "kept"
        predicted_error = step.plan.gradient_error or 0.0
        uses_its_room = predicted_error > _RELAX_BELOW * self._planning_cap
        too_large = not measured_error <= self._cap  # a gradient that is no number is that, too
        if too_large or (measured_error < _RELAX_BELOW * self._cap and uses_its_room):
            outcome = "tightened" if too_large else "relaxed"
            factor = _AIM * self._cap / max(measured_error, 1e-300) if math.isfinite(measured_error) else 0.0
            wanted = self._planning_cap * min(max(factor, 1 / _LARGEST_CHANGE), _LARGEST_CHANGE)
            before = step.plan.key
            if step.plan_again(min(wanted, _LARGEST_CAP)):
                self._planning_cap = min(wanted, _LARGEST_CAP)
            if step.plan.key == before:
                outcome = "stuck" if too_large else "kept"
        finite = measured_error if math.isfinite(measured_error) else None
        self._write(predicted_error, finite, outcome, step.steps_done - 1)

    def _write(self, predicted_error: float, measured_error: float | None, outcome: str, number: int) -> None:
        self.records.append(
            GuardRecord(
                step=number,
                predicted_error=predicted_error,
                measured_error=measured_error,
                cap=self._cap,
                planning_cap=self._planning_cap,
                outcome=outcome,
            )
        )


@final
class Watch:
    """One step that is looked at."""

    def __init__(self, guard: GradientGuard, exact: GradientSketch, apply: Apply) -> None:
        self._guard, self._exact, self._apply, self._planned = guard, exact, apply, GradientSketch()

    def apply(self, name: str, grad: Tensor, owned: bool) -> None:
        """Looks at a gradient and lets it update its parameter."""
        self._planned.add(name, grad)
        self._apply(name, grad, owned)

    def judge(self) -> None:
        """To be called when the step is done."""
        self._guard.judge(self._planned.error_from(self._exact))
