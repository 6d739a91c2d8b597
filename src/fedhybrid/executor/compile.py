"""The front door of the memory engine: `compile_step` and `plan_step`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fedhybrid.errors import CaptureError, ConfigError
from fedhybrid.executor.eager import EagerModeWarning, PreparedEager, prepare_eager
from fedhybrid.executor.guard import GUARD_BYTES
from fedhybrid.executor.options import LOSS_FREE, PlanOptions
from fedhybrid.executor.prepare import prepare_step
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.executor.step import TrainStep
from fedhybrid.planner import MENU, Plan
from fedhybrid.protocols import Optimizer
from fedhybrid.units import Budget, parse_budget

__all__ = ["compile_step", "plan_step"]

_MODES = ("program", "eager", "auto")
_OTHER_SHAPES = ("refuse", "compile")


def compile_step(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    *,
    optimizer: Optimizer,
    budget: str | int | Budget | None = None,
    actions: Sequence[str] = LOSS_FREE,
    max_gradient_error: float = 0.0,
    codecs: Sequence[str] = MENU,
    solver: str = "auto",
    time_limit_s: float | None = 5.0,
    clip_norm: float | None = None,
    micro_batches: int = 1,
    plan: Plan | None = None,
    ladder: Sequence[str | int | Budget] = (),
    other_shapes: str = "refuse",
    mode: str = "program",
    guard_every: int | None = None,
) -> TrainStep:
    """Compiles a training step of `model` whose peak stays inside `budget`.

    Args:
        model: Updated in place by the step; in the mode (train or eval) that it will be trained in.
        loss_fn: `loss_fn(model(x), y) -> scalar`; with a dictionary batch `loss_fn(model, batch) -> scalar`.
        batch: An example batch; its shapes and types are the program's.
        optimizer: `fh.SGD`, `fh.Adam` or `fh.AdamW`, with parameter groups if wanted (`fh.ParamGroup`).
        budget: Bytes of everything that the step holds ("96 MiB"), or "40%" (R + 0.4 A); None plans nothing.
        actions: What the plan may do.
        max_gradient_error: Cap on the relative L2 error of the gradient; infinity is none, and then it is not measured.
        codecs: What the action "encode" may choose from, for each tensor.
        solver: A name of `SOLVERS`, or "auto".
        time_limit_s: Wall-clock limit on planning, in seconds; None bounds the work instead.
        clip_norm: Gradients are scaled down together where their norm is larger, as by
            `torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)` before the updates, which then wait for
            all gradients.
        micro_batches: The batch is cut in so many equal parts along the first dimension of every tensor; gradients of
            `loss / micro_batches` are summed and the updates come after the last part. The loss is the sum of the
            parts' and what `loss_fn` returns beside it is joined. Batch norm sees one part at a time: its statistics
            are those of the parts.
        plan: A plan made before, here or elsewhere; takes the place of planning.
        ladder: Further budgets to plan and compile for now, so that `TrainStep.set_budget` switches at once.
        other_shapes: What a batch of another shape meets: "refuse" an error; "compile" a program of its own, captured
            and planned for the same budget in bytes when such a batch first comes (a smaller last batch, another
            sequence length; the 32 programs used last are kept). In the eager mode "compile" takes the batch as it
            is, and the budget is compared with the peak of the example batch alone.
        mode: "program" captures the model or fails. "eager" runs plain PyTorch: nothing is planned (the planning
            options mean nothing), the peak is measured on `batch`, and the budget is compared with it. "auto" takes
            the eager mode where the capture fails, and warns (`fh.EagerModeWarning`).
        guard_every: For lossy plans: once in so many steps the batch's exact gradient is computed too, inside the
            budget, and the plan becomes milder or bolder so that `max_gradient_error` holds while the weights change
            (`TrainStep.guard_records`). None never looks.

    Raises:
        CaptureError: The model does not trace.
        InfeasibleBudgetError: No plan fits the budget.
        PlanMismatchError: `plan` belongs to another graph.
        ConfigError: Anything else that does not fit together.
    """
    problems = [
        f"{name} must be one of {', '.join(known)}, got {given!r}"
        for name, given, known in (("mode", mode, _MODES), ("other_shapes", other_shapes, _OTHER_SHAPES))
        if given not in known
    ]
    if plan is not None and budget is not None:
        problems.append("give either a budget or a plan, not both: a plan has been made for its own budget")
    if plan is not None and mode == "eager":
        problems.append('mode="eager" cannot follow a plan: leave it out, or use mode="program"')
    if problems:
        raise ConfigError(problems)
    planning = PlanOptions(
        actions=actions,
        solver=solver,
        max_gradient_error=max_gradient_error,
        time_limit_s=time_limit_s,
        codecs=codecs,
    )
    _check_budgets(budget, ladder)  # before the capture, which takes a while

    def eager() -> PreparedEager:
        any_shape = other_shapes == "compile"
        return prepare_eager(
            model, loss_fn, batch, optimizer, clip_norm=clip_norm, micro_batches=micro_batches, any_shape=any_shape
        )

    prepared: PreparedStep | PreparedEager
    if mode == "eager":
        prepared = eager()
    else:
        try:
            prepared = prepare_step(model, loss_fn, batch, optimizer, clip_norm=clip_norm, micro_batches=micro_batches)
        except CaptureError as error:
            if mode == "program" or plan is not None:
                raise _with_eager_advice(error) from error
            warnings.warn(
                f"{error} Meanwhile the step runs in eager mode: its peak is measured, nothing is planned.",
                EagerModeWarning,
                stacklevel=2,
            )
            prepared = eager()
    if plan is None:
        plan = prepared.keep_all() if budget is None else _planned(prepared, budget, planning, guard_every)
    step = TrainStep(prepared, plan, planning=planning, other_shapes=other_shapes, guard_every=guard_every)
    step.prepare_ladder(ladder)
    return step


def plan_step(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    *,
    optimizer: Optimizer,
    budget: str | int | Budget,
    actions: Sequence[str] = LOSS_FREE,
    max_gradient_error: float = 0.0,
    codecs: Sequence[str] = MENU,
    solver: str = "auto",
    time_limit_s: float | None = 5.0,
    clip_norm: float | None = None,
    micro_batches: int = 1,
) -> Plan:
    """The plan that `compile_step` would use; nothing is compiled or run. Arguments and errors as there."""
    planning = PlanOptions(
        actions=actions,
        solver=solver,
        max_gradient_error=max_gradient_error,
        time_limit_s=time_limit_s,
        codecs=codecs,
    )
    _check_budgets(budget, ())
    try:
        prepared = prepare_step(model, loss_fn, batch, optimizer, clip_norm=clip_norm, micro_batches=micro_batches)
    except CaptureError as error:
        raise _with_eager_advice(error) from error
    return prepared.planned(budget, planning)


def _planned(
    prepared: PreparedStep | PreparedEager, budget: str | int | Budget, planning: PlanOptions, guard_every: int | None
) -> Plan:
    """A plan that leaves room for the guard, if there is to be one."""
    if guard_every is None:
        return prepared.planned(budget, planning)
    limit_bytes = parse_budget(budget).resolve_bytes(
        resident_bytes=prepared.resident_bytes, eager_peak_bytes=prepared.eager_peak_bytes
    )
    return replace(prepared.planned(limit_bytes - GUARD_BYTES, planning), budget_bytes=limit_bytes)


def _check_budgets(budget: str | int | Budget | None, ladder: Sequence[str | int | Budget]) -> None:
    if isinstance(ladder, str) or not isinstance(ladder, Sequence):
        raise ConfigError(f'ladder must be a sequence of budgets, such as ("100%", "60%"), got {ladder!r}')
    for given in (*([] if budget is None else [budget]), *ladder):
        parse_budget(given)


def _with_eager_advice(error: CaptureError) -> CaptureError:
    """The error with the way out for models that cannot be changed."""
    advice = 'Or train without a plan: fh.compile_step(..., mode="eager") measures the peak and cannot lower it.'
    return CaptureError(error.operation, error.reason, f"{error.advice} {advice}")
