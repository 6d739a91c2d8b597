"""The eager mode: a step in plain PyTorch, for models that cannot be captured. Its peak is measured, not planned.

What it does for memory: every parameter is updated as soon as its gradient is complete, which frees the gradient, and
what autograd saves is packed where that loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from fedhybrid.codecs import BoundCodec
from fedhybrid.errors import ConfigError, InfeasibleBudgetError
from fedhybrid.executor.bound import BoundModel, Layouts, put_back
from fedhybrid.executor.clip import clip_coefficient
from fedhybrid.executor.micro import parts_of, scaled_loss
from fedhybrid.executor.options import PlanOptions
from fedhybrid.executor.packing import CHANGED, packing
from fedhybrid.executor.prepare import check_setting
from fedhybrid.executor.reference import EagerStep
from fedhybrid.executor.running import Apply
from fedhybrid.executor.state import OptimizerState
from fedhybrid.graph import BatchSpec, allocator_events, batch_tensors, call_loss, peak_of
from fedhybrid.graph.guard import untouched
from fedhybrid.planner import Plan
from fedhybrid.protocols import Optimizer
from fedhybrid.units import Budget, parse_budget

__all__ = ["EagerModeWarning", "EagerRunner", "PreparedEager", "prepare_eager"]

_BLOCKER = "unknown: the eager mode measures whole steps and cannot plan"


class EagerModeWarning(UserWarning):
    """A step runs in eager mode because its model could not be captured: nothing is planned, the peak is measured."""


@final
@dataclass(frozen=True, kw_only=True)
class EagerRunner:
    """Runs forward and backward passes in PyTorch itself.

    Attributes:
        spec: Of the batch that the step was measured on.
        any_shape: Whether batches of other shapes (or strides) are taken, too.
        at_once: Update each parameter in the backward pass as soon as its gradient is complete.
    """

    model: nn.Module
    loss_fn: Callable[..., Any]
    clip_norm: float | None
    micro_batches: int
    spec: BatchSpec
    any_shape: bool
    at_once: bool

    @property
    def codecs(self) -> tuple[BoundCodec, ...]:
        """None: saved tensors are packed without loss by rules of their own."""
        return ()

    @property
    def source(self) -> str:
        """There is no generated program."""
        return "# eager mode: PyTorch runs the model; there is no generated program\n"

    def run(self, bound: BoundModel, batch: Any, apply: Apply) -> tuple[Tensor, Tensor | None]:
        """See `running.Runner.run`. Gradients of the parameters are None afterwards.

        Raises:
            ConfigError: The batch has another structure, type or, unless all are taken, shape than the measured one.
        """
        leaves, spec = batch_tensors(batch)
        if not (self.any_shape and (spec.structure, spec.dtypes) == (self.spec.structure, self.spec.dtypes)):
            self.spec.flatten(batch)  # raises if it differs, and says how
        trained = {name: leaf for name, leaf in bound.leaves.items() if leaf.requires_grad}
        resident = {t.untyped_storage().data_ptr() for t in (*bound.params, *bound.buffers, *leaves)}
        parts = [leaves] if self.micro_batches == 1 else parts_of(leaves, self.micro_batches)
        loss_fn = scaled_loss(self.loss_fn, self.micro_batches)
        total: Tensor | None = None
        outputs: list[Tensor] = []
        try:
            _forget_gradients(trained)
            for number, part in enumerate(parts, start=1):
                last = number == len(parts)
                updating = _updating(trained, apply) if last and self.at_once else nullcontext()
                with updating, torch.enable_grad(), packing(resident):
                    loss, aux = call_loss(self.model, loss_fn, pytree.tree_unflatten(part, spec.structure))
                    loss.backward()  # type: ignore[no-untyped-call]
                total = loss.detach() if total is None else total.add_(loss.detach())
                outputs += [] if aux is None else [aux]
                del loss, aux
            joined = torch.cat(outputs) if len(outputs) > 1 else outputs[0] if outputs else None
            outputs.clear()
            self._update_others(trained, apply)
        finally:
            _forget_gradients(trained)
        assert total is not None
        return total, joined

    def _update_others(self, trained: dict[str, nn.Parameter], apply: Apply) -> None:
        """Updates what still has a gradient: everything, or what had none in the last micro-batch."""
        with torch.no_grad():
            if self.clip_norm is not None:
                params = [p for p in trained.values() if p.grad is not None]
                gradients = [p.grad for p in params if p.grad is not None]
                coefficient = clip_coefficient(gradients, params, self.clip_norm)
                for grad in gradients:
                    grad.mul_(coefficient)
                gradients.clear()
            for name, param in trained.items():
                _update(name, param, apply)


def _forget_gradients(trained: dict[str, nn.Parameter]) -> None:
    for param in trained.values():
        param.grad = None


def _update(name: str, param: Tensor, apply: Apply) -> None:
    if param.grad is not None:
        with torch.no_grad():
            apply(name, param.grad, False)  # autograd may still hold another view of the gradient's memory
        param.grad = None


@contextmanager
def _updating(trained: dict[str, nn.Parameter], apply: Apply) -> Iterator[None]:
    """Inside, a parameter is updated as soon as its gradient is complete."""
    handles = []
    for name, param in trained.items():

        def complete(param: Tensor, name: str = name) -> None:
            _update(name, param, apply)

        handles.append(param.register_post_accumulate_grad_hook(complete))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@final
@dataclass(frozen=True, kw_only=True)
class PreparedEager:
    """One model, loss and optimizer for the eager mode, measured on one example batch.

    Attributes:
        resident_bytes: Parameters, buffers, optimizer state and example batch (R).
        peak_bytes: Measured peak of this mode's step, resident bytes included.
        eager_peak_bytes: Measured peak of the plain step with torch.optim, resident bytes included (R + A).
        timeline: Bytes live after each allocation of the measured step, resident bytes included.
    """

    model: nn.Module
    loss_fn: Callable[..., Any]
    optimizer: Optimizer
    example: Any
    clip_norm: float | None
    micro_batches: int
    layouts: Layouts
    trained: tuple[str, ...]
    runner: EagerRunner
    resident_bytes: int
    peak_bytes: int = 0
    eager_peak_bytes: int = 0
    timeline: list[int] = field(default_factory=list)

    mode = "eager"
    fingerprint = "eager mode, which has no graph"

    def keep_all(self) -> Plan:
        """The only plan that there is."""
        return self._plan(None)

    def planned(self, budget: str | int | Budget, options: PlanOptions) -> Plan:
        """The only plan that there is, if its measured peak is within the budget; the options have no meaning here.

        Raises:
            InfeasibleBudgetError: It is not.
        """
        limit = parse_budget(budget).resolve_bytes(
            resident_bytes=self.resident_bytes, eager_peak_bytes=self.eager_peak_bytes
        )
        if self.peak_bytes > limit:
            raise InfeasibleBudgetError(needed_bytes=self.peak_bytes, budget_bytes=limit, blocker=_BLOCKER)
        return self._plan(limit)

    def compile(self, plan: Plan) -> EagerRunner:
        """The same for every plan."""
        return self.runner

    def confirmed(self, plan: Plan, runner: EagerRunner) -> Plan:
        """The plan: it was measured here."""
        return plan

    def _plan(self, budget_bytes: int | None) -> Plan:
        return Plan(
            fingerprint=self.fingerprint,
            budget_bytes=budget_bytes,
            resident_bytes=self.resident_bytes,
            eager_peak_bytes=self.eager_peak_bytes,
            keep_all_peak_bytes=self.peak_bytes,
            peak_bytes=self.peak_bytes,
            peak_op="unknown (measured, not planned)",
            step_time_s=0.0,
            extra_time_s=0.0,
            bound_extra_time_s=0.0,
            gradient_error=0.0,
            solver="eager",
            threads=torch.get_num_threads(),
            decisions=(),
            splits=(),
            timelines={"planned": self.timeline},
            timeline_marks={},
        )


def prepare_eager(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    optimizer: Optimizer,
    *,
    clip_norm: float | None = None,
    micro_batches: int = 1,
    any_shape: bool = False,
) -> PreparedEager:
    """Runs the step once in the eager mode and once in plain PyTorch to measure both.

    Model, buffers and the random generator are left as they were. Needs the memory of the plain step, and copies of
    parameters and optimizer state while it measures.

    Args:
        model: As the others, an argument of `compile_step`.
        loss_fn: See `model`.
        batch: See `model`.
        optimizer: See `model`.
        clip_norm: See `model`.
        micro_batches: See `model`.
        any_shape: Batches of other shapes are taken, too; the peak is that of `batch` all the same.

    Raises:
        ConfigError: Batch or loss of another form; nothing to train; an option that is none.
    """
    batch = tuple(batch) if isinstance(batch, list) else batch
    check_setting(model, optimizer, clip_norm, micro_batches)
    leaves, spec = batch_tensors(batch)
    if micro_batches > 1:
        parts_of(leaves, micro_batches)
    trained = tuple(name for name, param in model.named_parameters() if param.requires_grad)
    if not trained:
        raise ConfigError("the model has no parameter with requires_grad=True; there is nothing to train")
    runner = EagerRunner(
        model=model,
        loss_fn=loss_fn,
        clip_norm=clip_norm,
        micro_batches=micro_batches,
        spec=spec,
        any_shape=any_shape,
        at_once=clip_norm is None,
    )
    prepared = PreparedEager(
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        example=batch,
        clip_norm=clip_norm,
        micro_batches=micro_batches,
        layouts=Layouts.of_model(model),
        trained=trained,
        runner=runner,
        resident_bytes=_resident_bytes(model, leaves, optimizer, trained),
    )
    return _measured(prepared, leaves)


def _resident_bytes(model: nn.Module, leaves: list[Tensor], optimizer: Optimizer, trained: tuple[str, ...]) -> int:
    blocks = {}
    for tensor in (*model.parameters(), *model.buffers(), *leaves):
        block = tensor.untyped_storage()
        blocks[block.data_ptr()] = block.nbytes()
    params = dict(model.named_parameters())
    state_bytes = len(optimizer.state_names) * sum(params[name].nbytes for name in trained)
    return sum(blocks.values()) + state_bytes


def _measured(prepared: PreparedEager, leaves: list[Tensor]) -> PreparedEager:
    bound = BoundModel(prepared.model, prepared.layouts)
    state = OptimizerState(prepared.optimizer, bound, prepared.trained)
    state.set_count(1)  # a first step may need less scratch than all that follow
    tensors = [*bound.params, *bound.buffers, *leaves]

    def events_of(runner: EagerRunner) -> list[int]:
        with put_back(tensors), untouched(prepared.model), allocator_events() as events:
            kept = runner.run(bound, prepared.example, state.apply)
        del kept
        return events

    try:
        events = events_of(prepared.runner)
    except RuntimeError as error:
        if CHANGED not in str(error):
            raise
        # The backward pass still reads a parameter after its gradient is complete: update after it.
        prepared = replace(prepared, runner=replace(prepared.runner, at_once=False))
        events = events_of(prepared.runner)
    timeline, live = [], prepared.resident_bytes
    for nbytes in events:
        live += nbytes
        if nbytes > 0:
            timeline.append(live)
    peak_bytes = prepared.resident_bytes + peak_of(events)
    with torch.random.fork_rng(devices=[]):
        eager_bytes = EagerStep(prepared, state).allocated_peak()
    return replace(
        prepared,
        peak_bytes=peak_bytes,
        eager_peak_bytes=prepared.resident_bytes + eager_bytes,
        timeline=timeline,
    )
