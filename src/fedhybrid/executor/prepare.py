"""Captures and profiles a step, and says what no step can be made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.executor.clip import check_clip_norm, norm_scratch
from fedhybrid.executor.closing import closing_costs
from fedhybrid.executor.forms import update_form
from fedhybrid.executor.groups import assign_groups
from fedhybrid.executor.micro import check_micro_batches, first_part, joined_shape, scaled_loss
from fedhybrid.executor.optimizer import groups_of
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.graph import batch_tensors, capture_step, fingerprint, rewrite
from fedhybrid.graph.guard import check_trainable
from fedhybrid.opwork import OpWork
from fedhybrid.planner import CostTable, profile_step, updates_of
from fedhybrid.protocols import Optimizer

__all__ = ["check_setting", "for_batch", "prepare_step"]


def prepare_step(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    optimizer: Optimizer,
    *,
    op_seconds: Callable[[OpWork], float] | None = None,
    clip_norm: float | None = None,
    micro_batches: int = 1,
    known: CostTable | None = None,
    forward_only: bool = False,
) -> PreparedStep:
    """Captures a whole training step and profiles its operators one at a time on scratch tensors.

    The step itself is not run: parameters, buffers and the random generator stay as they are.

    Args:
        model: In the mode (train or eval) that it will be trained in.
        loss_fn: `loss_fn(model(x), y) -> scalar`, or `(scalar, aux)`; with a dictionary batch `loss_fn(model, batch)`.
        batch: `(x, y)` or one dictionary of tensors; its shapes are the program's.
        optimizer: `SGD`, `Adam`, `AdamW` or another `protocols.Optimizer`.
        op_seconds: Prices operators on another device; without it they are timed here.
        clip_norm: See `compile_step`.
        micro_batches: See `compile_step`.
        known: Costs that need not be profiled again.
        forward_only: The step is a forward pass and its loss: no parameter requires a gradient, none is updated. Not
            with `micro_batches` or `clip_norm`.

    Raises:
        CaptureError: The model does not trace.
        ConfigError: Batch or loss of another form; nothing to train; an option that is none.
    """
    batch = tuple(batch) if isinstance(batch, list) else batch
    check_setting(model, optimizer, clip_norm, micro_batches)
    _, spec = batch_tensors(batch)
    if micro_batches > 1:
        check_trainable(model, loss_fn)  # the captured function is not the user's own then
        raw, _ = capture_step(model, scaled_loss(loss_fn, micro_batches), first_part(batch, micro_batches))
    else:
        raw, _ = capture_step(model, loss_fn, batch, forward_only=forward_only)
    if micro_batches > 1 and raw.aux is not None:
        joined_shape(raw.values[raw.aux].shape, micro_batches)
    graph = rewrite(raw)
    updates = updates_of(graph)
    form = update_form(optimizer, clip_norm, micro_batches)
    costs = profile_step(raw, graph, updates, form, timed=op_seconds is None, known=known)
    norm_bytes = (0, 0)
    if micro_batches > 1:
        costs = closing_costs(raw, graph, updates, optimizer, costs, timed=op_seconds is None)
    if clip_norm is not None:
        norm_bytes = norm_scratch(graph, updates, micro_batches)
    raw, graph = costs.with_hidden_bytes(raw), costs.with_hidden_bytes(graph)
    if op_seconds is not None:
        costs = costs.priced(op_seconds)
    kind = f"{type(optimizer).__name__}{optimizer.state_names}"
    kind += "" if clip_norm is None else " clipped"
    kind += "" if micro_batches == 1 else f" in {micro_batches} micro-batches"
    return PreparedStep(
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        example=batch,
        spec=spec,
        raw=raw,
        graph=graph,
        updates=updates,
        costs=costs,
        fingerprint=fingerprint(graph, kind),
        threads=torch.get_num_threads(),
        clip_norm=clip_norm,
        micro_batches=micro_batches,
        norm_bytes=norm_bytes,
        op_seconds=op_seconds,
        modes={name: module.training for name, module in model.named_modules()},
    )


def for_batch(prepared: PreparedStep, batch: Any, known: CostTable) -> PreparedStep:
    """The same step for batches of another shape; only calls that `known` does not hold are profiled.

    Raises:
        CaptureError: The step does not trace with this shape.
        ConfigError: Other parameters get a gradient with this shape, the model is in another mode (train or eval), or
            what `prepare_step` refuses.
    """
    modules = dict(prepared.model.named_modules())
    moved = [name or "the model" for name, mode in prepared.modes.items() if modules[name].training != mode]
    if moved:
        raise ConfigError(
            f"{moved[0]} is not in the mode (train or eval) that the step was compiled in, and this batch has a new "
            "shape; put the model back into that mode first (model.train())"
        )
    other = prepare_step(
        prepared.model,
        prepared.loss_fn,
        batch,
        prepared.optimizer,
        op_seconds=prepared.op_seconds,
        clip_norm=prepared.clip_norm,
        micro_batches=prepared.micro_batches,
        known=known,
    )
    if other.trained != prepared.trained:
        raise ConfigError("with a batch of this shape other parameters get a gradient; compile a step of its own")
    return other


def check_setting(model: nn.Module, optimizer: Optimizer, clip_norm: float | None, micro_batches: int) -> None:
    """Refuses what no step can be made of.

    Raises:
        ConfigError: All that is wrong at once.
    """
    problems = check_clip_norm(clip_norm) + check_micro_batches(micro_batches)
    given: object = optimizer
    if not isinstance(given, Optimizer):
        problems.append(
            f"optimizer must be fh.SGD, fh.Adam, fh.AdamW or another Optimizer, got {type(optimizer).__name__}"
        )
    else:
        try:
            assign_groups(groups_of(optimizer), {name: tuple(p.shape) for name, p in model.named_parameters()})
        except ConfigError as error:
            problems += error.problems
    elsewhere = {t.device.type for t in (*model.parameters(), *model.buffers())} - {"cpu"}
    if elsewhere:
        problems.append(f"the model must be on the CPU in this version, found it on {', '.join(sorted(elsewhere))}")
    if problems:
        raise ConfigError(problems)
