"""`TrainStep`: one training step that stays inside its budget, in place on the model that it was compiled for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from fedhybrid.codecs import BoundCodec
from fedhybrid.errors import ConfigError, InfeasibleBudgetError, PlanMismatchError
from fedhybrid.executor.bound import BoundModel, put_back
from fedhybrid.executor.guard import GUARD_BYTES, GradientGuard, GuardRecord
from fedhybrid.executor.measure import Measurement, measure_step
from fedhybrid.executor.options import PlanOptions
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.executor.running import Preparation, Runner
from fedhybrid.executor.shapes import OtherShapes
from fedhybrid.executor.state import OptimizerState
from fedhybrid.graph import allocator_events, answering, batch_tensors, peak_of
from fedhybrid.graph.guard import untouched
from fedhybrid.planner import Plan, monotone
from fedhybrid.planner.solvers import least_seconds
from fedhybrid.units import Budget, parse_budget

__all__ = ["TrainStep"]

Shapes = tuple[tuple[int, ...], ...]


@final
class TrainStep:
    """A compiled training step: call it with a batch.

    Each call updates the model's parameters and buffers and the optimizer's state in place, draws from torch's default
    generator in eager's order, and returns the detached loss.

    Attributes:
        prepared: What the step was made of: captured, or for the eager mode.
        state: The optimizer's tensors, counters and learning rates.
        aux: What the loss function returned beside the loss at the last call, or None.
    """

    def __init__(
        self,
        prepared: Preparation,
        plan: Plan,
        *,
        planning: PlanOptions | None = None,
        other_shapes: str = "refuse",
        guard_every: int | None = None,
    ) -> None:
        self.prepared = prepared
        self.aux: Tensor | None = None
        self._planning = planning or PlanOptions()
        self.bound = BoundModel(prepared.model, prepared.layouts)
        self._codec_seed = 0
        self.state = OptimizerState(prepared.optimizer, self.bound, prepared.trained)
        self._runners: dict[Any, Any] = {}
        self._ladder: list[Plan] = []
        self._measured: dict[tuple[Any, int], int] = {}
        self._others: OtherShapes | None = None
        if other_shapes == "compile" and isinstance(prepared, PreparedStep):
            self._others = OtherShapes(prepared, self._planning)
        self._guard: GradientGuard | None = None
        self._reserved_bytes = 0 if guard_every is None else GUARD_BYTES
        self.use_plan(plan)
        if guard_every is not None:
            self._guard = GradientGuard(self, guard_every, self._planning.max_gradient_error)

    def __call__(self, *batch: Any) -> Tensor:
        """One training step on `(x, y)` or one dictionary; returns the detached scalar loss.

        Raises:
            ConfigError: The batch's shapes or types are not those that the step was compiled for.
            InfeasibleBudgetError: With `other_shapes="compile"`: no plan for this shape is within the budget.
        """
        given = batch[0] if len(batch) == 1 else batch
        runner = self._runner_for(given)
        self.bound.refresh()
        counts = dict(self.state.counts)
        self.aux = None  # the last step's may be large, and no plan counts it
        watch = None
        if self._guard is not None and runner is self._runner and self._guard.due(self.state.steps):
            watch = self._guard.watch(given)
        try:
            loss, self.aux = runner.run(self.bound, given, self.state.apply if watch is None else watch.apply)
        except BaseException:
            self.state.counts = counts
            raise
        self.state.steps += 1
        if watch is not None:
            watch.judge()
        return loss

    def _runner_for(self, batch: Any) -> Runner:
        other = self._others and self._others.runner_for(batch, self._plan.budget_bytes)
        return other or self._runner

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._plan

    @property
    def programs(self) -> dict[Shapes, Plan]:
        """Every batch shape that has been compiled, as the shapes of the batch's tensors, with its plan."""
        _, spec = batch_tensors(self.prepared.example)
        others = {} if self._others is None else self._others.plans(self._plan.budget_bytes)
        return {spec.shapes: self._plan, **others}

    @property
    def mode(self) -> str:
        """How the step runs: "program", as one captured program, or "eager", as plain PyTorch."""
        return self.prepared.mode

    @property
    def source(self) -> str:
        """The generated program as text."""
        return self._runner.source

    @property
    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """State tensors by parameter name; the step's own, not a copy."""
        return self.state.tensors

    @property
    def lr(self) -> float:
        """The optimizer's learning rate now; `state.lrs` has that of each group."""
        return self.state.lr

    @property
    def steps_done(self) -> int:
        """Steps since the optimizer's state was fresh."""
        return self.state.steps

    def use_plan(self, plan: Plan) -> None:
        """Switches to another plan of the same graph from the next step on; parameters and state stay.

        A plan made on another machine may have another workspace here; `self.plan` then has the figures of this one.

        Raises:
            PlanMismatchError: The plan was made for another graph.
            InfeasibleBudgetError: On this machine its peak is above its own budget.
            ConfigError: It is no plan, or names storages that cannot be made again.
        """
        if not isinstance(plan, Plan):
            raise ConfigError(f"plan must be a fedhybrid.Plan (Plan.from_json reads one), got {type(plan).__name__}")
        if plan.fingerprint != self.prepared.fingerprint:
            raise PlanMismatchError(expected=self.prepared.fingerprint, found=plan.fingerprint)
        runner = self.compiled(plan)
        self._plan = self.prepared.confirmed(plan, runner)
        self._runner: Runner = runner

    def compiled(self, plan: Plan) -> Any:
        """The plan's runner; made once, since a federation switches plans at every task."""
        if plan.key not in self._runners:
            self._runners[plan.key] = self.prepared.compile(plan)
            for codec in self._runners[plan.key].codecs:
                codec.reset(self._codec_seed)
        return self._runners[plan.key]

    def set_budget(self, budget: str | int | Budget) -> None:
        """Switches to another budget from the next step on; no new capture.

        Takes the fastest rung of the ladder that fits, at once, or plans anew with the options of `compile_step` where
        none does. Other batch shapes are planned for the new budget when they come next.

        Raises:
            InfeasibleBudgetError: No plan fits; the step keeps its plan.
        """
        limit = parse_budget(budget).resolve_bytes(
            resident_bytes=self.prepared.resident_bytes, eager_peak_bytes=self.prepared.eager_peak_bytes
        )
        fitting = [rung for rung in self._ladder if rung.peak_bytes + self._reserved_bytes <= limit]
        if fitting:
            rung = min(fitting, key=lambda rung: (rung.extra_time_s, rung.peak_bytes))
            if rung.budget_bytes is not None and rung.budget_bytes < limit:  # its bound was proven for less
                rung = replace(rung, bound_extra_time_s=min(rung.bound_extra_time_s, self._least_extra_s()))
            self.use_plan(replace(rung, budget_bytes=limit))
            return
        self.use_plan(self._planned(limit, self._planning))

    def _least_extra_s(self) -> float:
        """No plan of this step costs less, whatever its budget."""
        prepared = self.prepared
        if not isinstance(prepared, PreparedStep):
            return 0.0
        return least_seconds(prepared.problem, split="split" in self._planning.actions, inexact=True)

    def plan_again(self, max_gradient_error: float) -> bool:
        """Makes another plan for the same budget, with another cap on its error; whether there is one."""
        planning = replace(self._planning, max_gradient_error=max_gradient_error)
        if self._plan.budget_bytes is None:
            return False
        try:
            self.use_plan(self._planned(self._plan.budget_bytes, planning))
        except (InfeasibleBudgetError, ConfigError):
            return False
        self._planning, self._ladder = planning, []  # rungs were made with another cap
        return True

    def _planned(self, limit_bytes: int, planning: PlanOptions) -> Plan:
        """A plan that leaves room for the guard, if there is one."""
        plan = self.prepared.planned(limit_bytes - self._reserved_bytes, planning)
        return replace(plan, budget_bytes=limit_bytes)

    def prepare_ladder(self, budgets: Sequence[str | int | Budget]) -> None:
        """Plans and compiles a program for each of several budgets, so that `set_budget` can switch at once.

        A larger budget never gets a slower plan than a smaller one, nor a smaller one a larger peak.

        Raises:
            InfeasibleBudgetError: No plan fits one of them.
        """
        planned = [self.prepared.planned(budget, self._planning) for budget in budgets]
        own = [self._plan] if planned and self._plan.budget_bytes is not None else []
        ladder = monotone([*own, *planned])
        for plan in ladder:
            self.compiled(plan)
        self._ladder = ladder

    def set_lr(self, lr: float | Sequence[float]) -> None:
        """Changes the learning rate from the next step on.

        Args:
            lr: The optimizer's; groups with a learning rate of their own follow by the same factor. Or one for each of
                `state_dict()["param_groups"]`.

        Raises:
            ConfigError: Negative.
        """
        self.state.set_lr(lr)

    def reset_optimizer(self) -> None:
        """Fresh optimizer state, as after construction, from the parameters as they are now; the memory is reused."""
        self.bound.refresh()
        self.state.reset()

    @property
    def guard_records(self) -> list[GuardRecord]:
        """What the guard of lossy plans found so far."""
        return [] if self._guard is None else list(self._guard.records)

    def reset_codecs(self, seed: int) -> None:
        """Codecs forget the ranges that they have seen, and draw their random numbers from a new stream."""
        self._codec_seed = seed
        for codec in self._codecs():
            codec.reset(seed)
        if self._others is not None:
            self._others.reset_codecs(seed)

    def _codecs(self) -> list[BoundCodec]:
        others = [] if self._others is None else self._others.runners
        return [codec for runner in (*self._runners.values(), *others) for codec in runner.codecs]

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state in torch.optim's layout, copied.

        It fits an optimizer over `model.parameters()`; with parameter groups, one whose first group has the parameters
        that no `ParamGroup` selects (if any), followed by one group for each `ParamGroup`.
        """
        return self.state.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over state from `state_dict()` of this or of a torch.optim optimizer of the same kind.

        Raises:
            ConfigError: State of another kind of optimizer or for other parameters or groups.
        """
        self.bound.refresh()
        self.state.load_state_dict(state_dict)

    def measured_peak_bytes(self) -> int:
        """The allocator's peak of one real step on the example batch, resident bytes included.

        A program is deterministic, so it is measured once; model, state and generator are left as they were.
        """
        key = (self._plan.key, torch.get_num_threads())
        if key not in self._measured:
            with self.preserved():
                self.state.set_count(1)  # a first step may need less scratch than all that follow
                with allocator_events() as events:
                    kept = self.run_example()
                del kept
            self._measured[key] = self.prepared.resident_bytes + peak_of(events)
        return self._measured[key]

    def measure(self, *, repeats: int = 5) -> Measurement:
        """Runs this step and the same step in eager PyTorch in turn, and compares bytes, seconds and every bit.

        Needs the memory of the eager step. Model, optimizer state and generator are left as they were.
        """
        return measure_step(self, repeats=repeats)

    def run_example(self) -> Tensor:
        """One step on the example batch."""
        example = self.prepared.example
        return self(example) if isinstance(example, dict) else self(*example)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Puts model, optimizer state, counters, codecs and example back when the block ends.

        No guard looks inside, and nobody outside is asked anything.
        """
        self.bound.refresh()
        example, _ = batch_tensors(self.prepared.example)
        tensors = [*self.bound.params, *self.bound.buffers, *self.state.all_tensors(), *example]
        counts, steps, aux = dict(self.state.counts), self.state.steps, self.aux
        codecs = [(codec, codec.saved()) for codec in self._codecs()]
        guard, self._guard = self._guard, None
        with put_back(tensors), untouched(self.prepared.model), answering(None):
            try:
                yield
            finally:
                self._guard = guard
                for codec, state in codecs:
                    codec.state = state
                self.state.counts, self.state.steps, self.aux = counts, steps, aux

    def gradients(self) -> dict[str, Tensor]:
        """The planned step's gradients on the example batch by parameter name; nothing is updated but buffers."""
        found: dict[str, Tensor] = {}

        def keep(name: str, grad: Tensor, owned: bool) -> None:
            found[name] = grad.clone()

        with self.preserved():
            self._runner.run(self.bound, self.prepared.example, keep)
        return found
