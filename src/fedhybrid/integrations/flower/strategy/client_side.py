"""What FedHybrid adds to anybody's ClientApp: a training step under the plan in the message, an answer to the server.

app = ClientApp()

@app.query("fedhybrid")
def capabilities(message, context):
    return answer_query(message, context, budget="48 MiB", device="raspberry-pi-4", num_examples=640)

@app.train()
def train(message, context):
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    step = planned_step(message, model, loss_fn, batches[0], fh.SGD(lr=0.05))
    losses = [float(step(x, y)) for x, y in batches]
    ...
    return Message(RecordDict({..., "fedhybrid": step_metrics(step)}), reply_to=message)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message
from torch import nn

from fedhybrid.devices import DeviceProfile
from fedhybrid.errors import ConfigError
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.graph import batch_tensors
from fedhybrid.integrations.flower.strategy.alike import alike_but_lr, alike_models
from fedhybrid.integrations.flower.strategy.capabilities import record_of_capabilities
from fedhybrid.planner import Plan
from fedhybrid.protocols import Optimizer

__all__ = ["MEASURED_PEAK", "PLAN_KEY", "SQUARED_LOSS", "answer_query", "planned_step", "step_metrics"]

PLAN_KEY = "fedhybrid.plan"
MEASURED_PEAK, SQUARED_LOSS = "measured-peak-bytes", "squared-loss-mean"


@dataclass
class _Kept:
    """The step that this process used last; one, because a device has memory for one model.

    Attributes:
        step: As `planned_step` gave it.
        plan_text: What it was made from; None for the unplanned step.
        other_shapes: As of `planned_step`.
        peaks: Measured peaks by what decides which program a plan is.
    """

    step: TrainStep
    plan_text: str | None
    other_shapes: str
    peaks: dict[Any, int]


_kept: list[_Kept] = []  # empty or one


def planned_step(
    message: Message,
    model: nn.Module,
    loss_fn: Callable[..., Any],
    example_batch: Any,
    optimizer: Optimizer,
    *,
    other_shapes: str = "refuse",
) -> TrainStep:
    """A training step of `model` under the plan that came with the message, its optimizer's state fresh.

    Without a plan (another strategy has sent the message) the step is the whole program: eager's bits in no more
    memory. What was captured is kept in this process and used again, for the same model or for one built alike.

    Args:
        message: A task.
        model: Updated in place; in the mode (train or eval) that it will be trained in.
        loss_fn: As of `fh.compile_step`; a function of a module, not one made anew for each message.
        example_batch: Its shapes are the step's, as on the server.
        optimizer: Of the kind that the server knows; its learning rate is its own.
        other_shapes: What a smaller last batch meets: "refuse" an error, "compile" a program of its own, planned here
            for the same budget.

    Raises:
        PlanMismatchError: Model, loss, batch shapes, optimizer or torch differ from the server's.
        InfeasibleBudgetError: On this machine the plan needs more than its budget.
        CaptureError: The model does not trace.
        ConfigError: The plan or another argument is none.
    """
    text = _plan_text(message)

    def fits(known: PreparedStep) -> bool:
        return _fits(known, model, loss_fn, example_batch, optimizer)

    step = _again(text, model, other_shapes, fits)
    if step is None:
        prepared = _prepared(model, loss_fn, example_batch, optimizer)
        plan = _plan_of(text, prepared)
        peaks = _kept[0].peaks if _kept and _kept[0].step.prepared.fingerprint == prepared.fingerprint else {}
        _kept.clear()  # before the next step takes its memory
        step = TrainStep(prepared, plan, other_shapes=other_shapes)
        _kept.append(_Kept(step=step, plan_text=text, other_shapes=other_shapes, peaks=peaks))
    step.reset_optimizer()
    step.set_lr(optimizer.lr)
    return step


def _plan_text(message: Message) -> str | None:
    """The plan in whichever of the message's config records has one."""
    for record in message.content.config_records.values():
        if PLAN_KEY in record:
            return str(record[PLAN_KEY])
    return None


def _again(
    text: str | None, model: nn.Module, other_shapes: str, fits: Callable[[PreparedStep], bool]
) -> TrainStep | None:
    """The step used last, where at most its plan differs."""
    if not _kept or _kept[0].other_shapes != other_shapes:
        return None
    kept, prepared = _kept[0], _kept[0].step.prepared
    if not isinstance(prepared, PreparedStep) or prepared.model is not model or not fits(prepared):
        return None
    if kept.plan_text != text:
        kept.step.use_plan(_plan_of(text, prepared))
        kept.plan_text = text
    return kept.step


def _plan_of(text: str | None, prepared: PreparedStep) -> Plan:
    return prepared.keep_all() if text is None else Plan.from_json(text)


def _prepared(model: nn.Module, loss_fn: Callable[..., Any], example_batch: Any, optimizer: Optimizer) -> PreparedStep:
    """Captured now, or what was captured of a model built alike."""
    known = _kept[0].step.prepared if _kept else None
    if isinstance(known, PreparedStep) and _fits(known, model, loss_fn, example_batch, optimizer):
        return replace(known, model=model, example=example_batch, optimizer=optimizer)
    # Nothing is timed here: what a step costs on this device is the server's business.
    return prepare_step(model, loss_fn, example_batch, optimizer, op_seconds=lambda work: 0.0)


def _fits(known: PreparedStep, model: nn.Module, loss_fn: Callable[..., Any], batch: Any, optimizer: Optimizer) -> bool:
    """Whether a capture serves for this call, too."""
    _, spec = batch_tensors(tuple(batch) if isinstance(batch, list) else batch)
    return (
        known.loss_fn is loss_fn
        and known.spec == spec
        and alike_but_lr(known.optimizer, optimizer)
        and {name: module.training for name, module in model.named_modules()} == known.modes
        and alike_models(known.model, model)
    )


def step_metrics(step: TrainStep, *, squared_loss_mean: float | None = None) -> ConfigRecord:
    """What the server wants to know of a step, for a record of its own in the reply.

    It is no MetricRecord, because Flower's strategies average all of those, and accept only one.

    Args:
        step: As `planned_step` gave it. The first time that a plan runs here, its peak is measured in one more step
            on the example batch, which leaves model and optimizer as they are.
        squared_loss_mean: Over the samples seen, for policies that go by losses; by default the strategy squares the
            mean loss that the app reports.
    """
    key = (step.plan.key, torch.get_num_threads())
    peaks = _kept[0].peaks if _kept and _kept[0].step is step else {}
    if key not in peaks:
        peaks[key] = step.measured_peak_bytes()
    told: dict[str, int | float] = {MEASURED_PEAK: peaks[key]}
    if squared_loss_mean is not None:
        told[SQUARED_LOSS] = float(squared_loss_mean)
    return ConfigRecord(dict(told))


def answer_query(
    message: Message,
    context: Context,
    *,
    budget: str | int | None = None,
    device: str | Path | DeviceProfile | None = None,
    num_examples: int | None = None,
) -> Message:
    """The reply to the server's question what this device can do.

    Args:
        message: Of the type "query.fedhybrid".
        context: Of the app.
        budget: Bytes of everything that a training step may hold ("48 MiB"), or "40%" (R + 0.4 A); by default the
            node's setting `budget` (`--node-config 'budget="48 MiB" device="raspberry-pi-4"'`).
        device: A name of `fedhybrid list devices`, or a profile of one's own (`fedhybrid doctor --profile FILE`
            writes one); by default the node's setting `device`, and without one the server assumes.
        num_examples: Training samples on this device.

    Raises:
        ConfigError: No budget; a budget, device or number that is none.
    """
    told_budget = context.node_config.get("budget") if budget is None else budget
    told_device = context.node_config.get("device") if device is None else device
    if not isinstance(told_budget, (str, int)):
        raise ConfigError(
            f'budget: needs bytes, such as "48 MiB", found {told_budget!r}; give answer_query(budget=...) or start the '
            "node with --node-config 'budget=\"48 MiB\"'"
        )
    if told_device is not None and not isinstance(told_device, (str, Path, DeviceProfile)):
        raise ConfigError(f"device: needs a name or a profile, found {told_device!r}; see `fedhybrid list devices`")
    content = record_of_capabilities(budget=told_budget, device=told_device, num_examples=num_examples)
    return Message(content, reply_to=message)
