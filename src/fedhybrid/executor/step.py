"""`TrainStep`: one training step that stays inside its budget, in place on the model that it was compiled for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError, PlanMismatchError
from fedhybrid.executor.bound import BoundModel
from fedhybrid.executor.lower import Program, lower
from fedhybrid.executor.measure import Measurement, measure_step
from fedhybrid.executor.optimizer import torch_twin
from fedhybrid.executor.prepare import ACTIONS, PlanOptions, PreparedStep, prepare_step
from fedhybrid.graph import allocator_events, peak_of
from fedhybrid.planner import Plan, Solution, plan_decisions
from fedhybrid.protocols import Optimizer
from fedhybrid.units import Budget, parse_budget

__all__ = ["TrainStep", "compile_step", "plan_step"]

UpdateCall = Callable[[int, Tensor], None]
Key = tuple[tuple[str, int, str], ...]


@final
class TrainStep:
    """A compiled training step: call it with a batch.

    Each call updates the model's parameters and buffers and the optimizer's state in place, draws from torch's default
    generator in eager's order, and returns the detached loss.

    Attributes:
        prepared: The captured step behind it.
        aux: What the loss function returned beside the loss at the last call, or None.
    """

    def __init__(self, prepared: PreparedStep, plan: Plan, *, planning: PlanOptions | None = None) -> None:
        self.prepared = prepared
        self.aux: Tensor | None = None
        self._planning = planning or PlanOptions()
        self._bound = BoundModel(prepared.model, prepared.graph)
        self._programs: dict[Key, tuple[Solution, Program]] = {}
        self._ladder: list[Plan] = []
        self._measured: dict[tuple[Key, int], int] = {}
        self._lr = prepared.optimizer.lr
        self._state: dict[str, dict[str, Tensor]] = {}
        self._count = 0
        self.reset_optimizer()
        self.use_plan(plan)

    def __call__(self, *batch: Any) -> Tensor:
        """One training step on `(x, y)` or one dictionary; returns the detached scalar loss.

        Raises:
            ConfigError: The batch's shapes or types are not those that the step was compiled for.
        """
        tensors = self.prepared.spec.flatten(batch[0] if len(batch) == 1 else batch)
        self._bound.refresh()
        self._count += 1
        try:
            loss, self.aux = self._run(tensors, self._update)
        except BaseException:
            self._count -= 1
            raise
        return loss

    def _run(self, tensors: list[Tensor], update: UpdateCall) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            loss, aux = self._program.run(self._bound.params, self._bound.buffers, tensors, update, _no_clip)
        return loss, aux

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._plan

    @property
    def mode(self) -> str:
        """How the step runs: "program", as one captured program."""
        return "program"

    @property
    def source(self) -> str:
        """The generated program as text."""
        return self._program.source

    @property
    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """State tensors by parameter name; the step's own, not a copy."""
        return self._state

    @property
    def lr(self) -> float:
        """The learning rate in use."""
        return self._lr

    @property
    def steps_done(self) -> int:
        """Steps since the optimizer's state was fresh."""
        return self._count

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
        found, program = self._compiled(plan)
        self._plan, self._program = self.prepared.confirmed(plan, found), program

    def _compiled(self, plan: Plan) -> tuple[Solution, Program]:
        """The plan's schedule and program; made once, since a federation switches plans at every task."""
        key = plan.key
        if key not in self._programs:
            problem = self.prepared.problem
            found = Solution.of(problem, plan_decisions(problem, plan))
            self._programs[key] = found, lower(problem, found.schedule, self.prepared.updates)
        return self._programs[key]

    def set_budget(self, budget: str | int | Budget) -> None:
        """Switches to another budget from the next step on; no new capture.

        Takes the fastest rung of the ladder that fits, at once, or plans anew with the options of `compile_step` where
        none does.

        Raises:
            InfeasibleBudgetError: No plan fits; the step keeps its plan.
        """
        limit = parse_budget(budget).resolve_bytes(
            resident_bytes=self.prepared.resident_bytes, eager_peak_bytes=self.prepared.eager_peak_bytes
        )
        fitting = [rung for rung in self._ladder if rung.peak_bytes <= limit]
        if fitting:
            self.use_plan(min(fitting, key=lambda rung: (rung.extra_time_s, rung.peak_bytes)))
            return
        self.use_plan(self.prepared.plan(budget, **vars(self._planning)))

    def prepare_ladder(self, budgets: Sequence[str | int | Budget]) -> None:
        """Plans and compiles a program for each of several budgets, so that `set_budget` can switch at once.

        Raises:
            InfeasibleBudgetError: No plan fits one of them.
        """
        ladder = [self.prepared.plan(budget, **vars(self._planning)) for budget in budgets]
        for plan in ladder:
            self._compiled(plan)
        self._ladder = ladder

    def set_lr(self, lr: float) -> None:
        """Changes the learning rate from the next step on.

        Raises:
            ConfigError: Negative.
        """
        if not isinstance(lr, (int, float)) or not 0 <= lr < math.inf:
            raise ConfigError(f"lr must not be negative and must be a finite number, got {lr!r}")
        self._lr = lr

    def reset_optimizer(self) -> None:
        """Fresh optimizer state, as after construction, from the parameters as they are now; the memory is reused."""
        self._bound.refresh()
        for update in self.prepared.updates:
            made = self.prepared.optimizer.init_state(self._bound.by_name[update.name])
            old = self._state.get(update.name)
            self._state[update.name] = made if old is None else {k: old[k].copy_(t) for k, t in made.items()}
        self._count = 0

    def _update(self, index: int, grad: Tensor) -> None:
        update = self.prepared.updates[index]
        name = update.name
        self.prepared.optimizer.update(
            name, self._bound.by_name[name], grad, self._state[name], step=self._count, lr=self._lr, owned=update.owned
        )

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state in torch.optim's layout (for an optimizer over `model.parameters()`), copied."""
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(self.prepared.graph.params):
            if name in self._state and self._count:
                state[index] = {k: t.clone() for k, t in self._state[name].items()}
                if "exp_avg" in state[index]:
                    state[index]["step"] = torch.tensor(float(self._count))
        params = self._bound.params
        twin = torch_twin(self.prepared.optimizer, params)
        group = twin.state_dict()["param_groups"][0] if twin else {"params": list(range(len(params)))}
        return {"state": state, "param_groups": [{**group, "lr": self._lr}], "steps": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over state from `state_dict()` of this or of a torch.optim optimizer of the same kind.

        Raises:
            ConfigError: State of another kind of optimizer or for other parameters.
        """
        names = list(self.prepared.graph.params)
        groups = state_dict.get("param_groups") or [{}]
        given = state_dict.get("state", {})
        problems = []
        if len(groups[0].get("params", ())) != len(names) or "lr" not in groups[0]:
            problems.append(f"optimizer state needs one parameter group of {len(names)} parameters with its lr")
        for update in self.prepared.updates:
            entry = given.get(names.index(update.name), {})
            for key, tensor in self._state[update.name].items():
                if given and (key not in entry or entry[key].shape != tensor.shape):
                    problems.append(f"optimizer state of {update.name!r} needs {key!r} of shape {tuple(tensor.shape)}")
        if problems:
            raise ConfigError(problems)
        if not given:
            self.reset_optimizer()
        for update in self.prepared.updates if given else ():
            for key, tensor in self._state[update.name].items():
                tensor.copy_(given[names.index(update.name)][key])
        counts = {int(entry["step"]) for entry in given.values() if "step" in entry}
        self._count = int(state_dict.get("steps", max(counts, default=1 if given else 0)))
        self._lr = float(groups[0]["lr"])

    def measured_peak_bytes(self) -> int:
        """The allocator's peak of one real step of the current program, resident bytes included.

        A program is deterministic, so it is measured once; model, state and generator are left as they were.
        """
        key = (self._plan.key, torch.get_num_threads())
        if key not in self._measured:
            with self.preserved():
                self._count = max(self._count, 1)  # a first step may need less scratch than all that follow
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
        """One step on the example batch that the program was captured with."""
        example = self.prepared.example
        return self(example) if isinstance(example, dict) else self(*example)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Puts parameters, buffers, optimizer state, counters, example and generator back when the block ends."""
        self._bound.refresh()
        example = self.prepared.spec.flatten(self.prepared.example)
        state = [t for tensors in self._state.values() for t in tensors.values()]
        tensors = [*self._bound.params, *self._bound.buffers, *state, *example]
        copies, count, aux = [t.clone() for t in tensors], self._count, self.aux
        with torch.random.fork_rng(devices=[]):
            try:
                yield
            finally:
                with torch.no_grad():
                    for tensor, copy in zip(tensors, copies, strict=True):
                        tensor.copy_(copy)
                self._count, self.aux = count, aux

    def gradients(self) -> dict[str, Tensor]:
        """The planned step's gradients on the example batch by parameter name; nothing is updated but buffers."""
        found: dict[str, Tensor] = {}
        names = [update.name for update in self.prepared.updates]
        tensors = self.prepared.spec.flatten(self.prepared.example)
        with self.preserved():
            self._run(tensors, lambda i, grad: found.__setitem__(names[i], grad.clone()))
        return found


def compile_step(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    *,
    optimizer: Optimizer,
    budget: str | int | Budget | None = None,
    actions: Sequence[str] = ACTIONS,
    solver: str = "auto",
    max_gradient_error: float = 0.0,
    time_limit_s: float | None = 5.0,
    plan: Plan | None = None,
    ladder: Sequence[str | int | Budget] = (),
) -> TrainStep:
    """Compiles a training step of `model` whose peak stays inside `budget`.

    Args:
        model: Updated in place by the step; in the mode (train or eval) that it will be trained in.
        loss_fn: `loss_fn(model(x), y) -> scalar`; with a dictionary batch `loss_fn(model, batch) -> scalar`.
        batch: An example batch; its shapes and types are the program's.
        optimizer: `fh.SGD`, `fh.Adam` or `fh.AdamW`.
        budget: Bytes of everything that the step holds ("96 MiB"), or "40%" (R + 0.4 A); None plans nothing.
        actions: What the plan may do.
        solver: A name of `SOLVERS`, or "auto".
        max_gradient_error: Cap on the relative L2 error of the gradient.
        time_limit_s: Wall-clock limit on planning, in seconds; None bounds the work instead.
        plan: A plan made before, here or elsewhere; takes the place of planning.
        ladder: Further budgets to plan and compile for now, so that `TrainStep.set_budget` switches at once.

    Raises:
        CaptureError: The model does not trace.
        InfeasibleBudgetError: No plan fits the budget.
        PlanMismatchError: `plan` belongs to another graph.
        ConfigError: Anything else that does not fit together.
    """
    if plan is not None and budget is not None:
        raise ConfigError("give either a budget or a plan, not both: a plan has been made for its own budget")
    planning = PlanOptions(
        actions=actions, solver=solver, max_gradient_error=max_gradient_error, time_limit_s=time_limit_s
    )
    prepared = prepare_step(model, loss_fn, batch, optimizer)
    if plan is None:
        plan = prepared.keep_all() if budget is None else prepared.plan(budget, **vars(planning))
    step = TrainStep(prepared, plan, planning=planning)
    step.prepare_ladder(ladder)
    return step


def plan_step(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    *,
    optimizer: Optimizer,
    budget: str | int | Budget,
    actions: Sequence[str] = ACTIONS,
    solver: str = "auto",
    max_gradient_error: float = 0.0,
    time_limit_s: float | None = 5.0,
) -> Plan:
    """The plan that `compile_step` would use; nothing is compiled or run. Arguments and errors as there."""
    planning = PlanOptions(
        actions=actions, solver=solver, max_gradient_error=max_gradient_error, time_limit_s=time_limit_s
    )
    return prepare_step(model, loss_fn, batch, optimizer).plan(budget, **vars(planning))


def _no_clip(gradients: list[Tensor]) -> None:
    """For steps whose updates do not wait for each other."""
