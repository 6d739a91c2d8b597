"""Where the seconds of a captured step go: forward, passing gradients on, each parameter's own gradient and update.

Methods that train few tensors at a time choose them by these figures (ElasticTrainer, FedEL). Each second of the step
is counted once: their sum is the step's time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import reduce
from operator import or_

from fedhybrid.executor.forms import update_form
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.graph import Op, Role, StepGraph
from fedhybrid.planner.work import op_work
from fedhybrid.records import TensorTimes

__all__ = ["tensor_times"]

_MASK_AT = {"convolution_backward": 10}  # where an operator is told which of its outputs are wanted, if its work tells


def tensor_times(prepared: PreparedStep) -> TensorTimes:
    """The seconds of a step by parameter, priced as `prepared` is.

    An operator of the backward pass without which only one parameter would lack its gradient counts as that parameter's
    own. One that several need passes the gradient on; it counts for the parameter that the forward pass reads right
    after the last of those, so that who trains parameters from number k on pays `pass_s` of all numbers above k. What
    all of them need (the loss's own backward) counts as forward. Where one operator passes the gradient on and makes
    parameters' gradients too, passing on is priced as if it did nothing else, and the rest is the parameters'.

    Args:
        prepared: A step without micro-batches.
    """
    graph, costs = prepared.graph, prepared.costs
    names = _in_reading_order(prepared)
    number = {name: i for i, name in enumerate(names)}
    needed = _needed_for(graph, {graph.grads[graph.params[name]]: i for name, i in number.items()})
    forward_s = sum(costs.of_op(graph, op).seconds for op in graph.ops[: graph.backward_at] if not op.is_view)
    pass_s, weight_s = [0.0] * len(names), [0.0] * len(names)
    for op in graph.ops[graph.backward_at :]:
        if op.is_view:
            continue
        for whose, seconds in _shares(prepared, op, needed):
            last = whose.bit_length() - 1
            if whose and whose == 1 << last:
                weight_s[last] += seconds
            elif 0 <= last < len(names) - 1:
                pass_s[last + 1] += seconds
            else:
                forward_s += seconds
    form = update_form(prepared.optimizer, prepared.clip_norm, prepared.micro_batches)
    for update in prepared.updates:
        weight_s[number[update.name]] += costs.of_update(graph, update, form).seconds
    return TensorTimes(
        forward_s=forward_s,
        pass_s=dict(zip(names, pass_s, strict=True)),
        weight_s=dict(zip(names, weight_s, strict=True)),
        names=names,
    )


def _in_reading_order(prepared: PreparedStep) -> tuple[str, ...]:
    """Names of the trained parameters as the forward pass reads them."""
    graph = prepared.graph
    name_of = {graph.storage_of(graph.params[name]): name for name in prepared.trained}
    read = (graph.storage_of(v) for op in graph.ops[: graph.backward_at] for v in op.inputs)
    return tuple(dict.fromkeys([*(name_of[s] for s in read if s in name_of), *prepared.trained]))


def _needed_for(graph: StepGraph, number: dict[int, int]) -> dict[int, int]:
    """For each storage the set of gradients that the backward pass makes from it, as the bits of a number.

    Args:
        graph: The step.
        number: Of each gradient's value.
    """
    needed: dict[int, int] = {}
    for value, bit in number.items():
        storage = graph.storage_of(value)
        needed[storage] = needed.get(storage, 0) | 1 << bit
    for op in reversed(graph.ops[graph.backward_at :]):
        made = [graph.storage_of(v) for v in (*op.outputs, *op.writes) if v is not None]
        whose = _union(needed.get(storage, 0) for storage in made)
        for read in {graph.storage_of(v) for v in op.inputs}:
            if graph.storages[read].role is Role.TEMP:
                needed[read] = needed.get(read, 0) | whose
    return needed


def _shares(prepared: PreparedStep, op: Op, needed: dict[int, int]) -> Iterator[tuple[int, float]]:
    """Pairs of a set of gradients and seconds: one of the whole call or, if its outputs differ in it, one of each."""
    graph, seconds = prepared.graph, prepared.costs.of_op(prepared.graph, op).seconds
    whose = [0 if v is None else needed.get(graph.storage_of(v), 0) for v in op.outputs]
    whose_written = [needed.get(graph.storage_of(v), 0) for v in op.writes]
    if len({w for w in whose if w}) < 2 or whose_written:
        yield _union((*whose, *whose_written)), seconds
        return
    # The first output is the gradient that goes on; each further one adds what the call costs more with it.
    so_far = 0.0
    for count, each in enumerate(whose, start=1):
        until_here = seconds if count == len(whose) else _seconds_of_first(prepared, op, count, seconds)
        yield each, until_here - so_far
        so_far = until_here


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)


def _seconds_of_first(prepared: PreparedStep, op: Op, count: int, seconds: float) -> float:
    """Of a call that made only its first so many outputs."""
    wanted = tuple(v if i < count else None for i, v in enumerate(op.outputs))
    if all(v is None for v in wanted):
        return 0.0
    at = _MASK_AT.get(op.target.split(".")[1])
    args = op.args if at is None else (*op.args[:at], [v is not None for v in wanted], *op.args[at + 1 :])
    work = op_work(prepared.graph, replace(op, outputs=wanted, args=args))
    if prepared.op_seconds is not None:
        return min(seconds, prepared.op_seconds(work))
    whole = op_work(prepared.graph, op)  # timed here, and only as a whole
    return seconds * work.flops / whole.flops
