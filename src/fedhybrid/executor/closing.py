"""What follows the last micro-batch: clipping and the updates, which no longer belong to the planned program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedhybrid.graph import StepGraph
from fedhybrid.planner import CostTable, Plan, Update, profile_step
from fedhybrid.protocols import Optimizer

__all__ = ["Closing", "closing_costs", "closing_of", "whole_plan"]


@dataclass(frozen=True, kw_only=True)
class Closing:
    """The end of a step of several micro-batches; empty for a step of one.

    Attributes:
        held_bytes: Alive during every micro-batch: sums of gradients, the loss so far, the joined auxiliary output.
        tops: Bytes live at the worst moment of the clipping and of each update, resident bytes excluded.
        names: What each of them is.
        seconds: Of all updates.
    """

    held_bytes: int = 0
    tops: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """Largest of `tops`; 0 if there are none."""
        return max(self.tops, default=0)

    @property
    def peak_op(self) -> str:
        """What is at the peak."""
        return self.names[self.tops.index(self.peak_bytes)]


def closing_costs(
    raw: StepGraph,
    graph: StepGraph,
    updates: Sequence[Update],
    optimizer: Optimizer,
    known: CostTable,
    *,
    timed: bool,
) -> CostTable:
    """`known` with the costs of the updates from sums of gradients."""
    return profile_step(raw, graph, [_from_sum(update) for update in updates], optimizer, timed=timed, known=known)


def closing_of(
    graph: StepGraph,
    updates: Sequence[Update],
    costs: CostTable,
    optimizer: Optimizer,
    *,
    micro_batches: int,
    norm_bytes: int,
) -> Closing:
    """The closing of a step whose program for one micro-batch is made from `graph`."""
    if micro_batches == 1:
        return Closing()
    live = sum(graph.values[update.param].nbytes for update in updates) + graph.values[graph.loss].nbytes
    if graph.aux is not None:
        live += micro_batches * graph.values[graph.aux].nbytes
    held_bytes, tops, names, seconds = live, [], [], 0.0
    if norm_bytes:
        tops.append(live + norm_bytes)
        names.append("the norm of all gradients")
    for update in updates:
        cost = costs.of_update(graph, _from_sum(update), optimizer)
        tops.append(live + cost.workspace_bytes)
        names.append(f"optimizer update of {update.name}")
        live -= graph.values[update.param].nbytes
        seconds += cost.seconds
    return Closing(held_bytes=held_bytes, tops=tuple(tops), names=tuple(names), seconds=seconds)


def whole_plan(plan: Plan, closing: Closing, micro_batches: int) -> Plan:
    """The plan of one micro-batch's program as the plan of the whole step."""
    if micro_batches == 1:
        return plan
    ends = [plan.resident_bytes + top for top in closing.tops]
    highest = max(ends)
    return replace(
        plan,
        peak_bytes=max(plan.peak_bytes, highest),
        peak_op=closing.peak_op if highest > plan.peak_bytes else plan.peak_op,
        keep_all_peak_bytes=max(plan.keep_all_peak_bytes, highest),
        step_time_s=plan.step_time_s * micro_batches + closing.seconds,
        extra_time_s=plan.extra_time_s * micro_batches,
        bound_extra_time_s=plan.bound_extra_time_s * micro_batches,
        timelines={k: tops if k == "eager" else [*tops, *ends] for k, tops in plan.timelines.items()},
    )


def _from_sum(update: Update) -> Update:
    """The update when its gradient is a sum: in the parameter's layout and nobody else's."""
    return replace(update, grad=update.param, owned=True)
