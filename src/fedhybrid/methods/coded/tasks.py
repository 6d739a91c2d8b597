"""Tasks of methods that train the last layer and have its samples coded before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import tasks_for_cohort
from fedhybrid.methods.coded.rows import SEED, CodedSet
from fedhybrid.methods.coded.steps import coded_names, drawn_bytes, encoding_step, head_names, head_step
from fedhybrid.protocols import RoundPlan, ServerState, Submodel
from fedhybrid.records import ClientTask, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, total_bytes

__all__ = [
    "ENCODE",
    "HEAD",
    "NAMES",
    "STEPS",
    "arrival",
    "coded_submodel",
    "coding_tasks",
    "encoding_name",
    "head_tasks",
    "is_whole",
    "trained_names",
    "with_holders",
]

ENCODE, HEAD = "encode", "head"  # the first is a kind of task, the second a submodel
_SEED_BYTES = 8
_FEWER = 4  # a client without memory for so many rows in a step tries this part of them
_HOLDERS = "coded/holders"  # in `ServerState.extra`
_FLOAT_BITS = 53  # of integers that a figure of an update holds exactly
NAMES, STEPS = "names", "steps"  # options of tasks: names of tensors to send, steps of a client in a round


def coding_tasks(
    server: ServerState, plan: RoundPlan, *, rows: int, options: Callable[[int], Mapping[str, Any]]
) -> list[ClientTask]:
    """One pass over each client's samples. Frozen layers travel, the rows, which begin at 0, do not.

    Args:
        server: Its weights are the whole model's.
        plan: Of the preparation.
        rows: That each client makes.
        options: Of each client, beside the names of the coded tensors and the steps of a round.

    Raises:
        ConfigError: Classes come one task after the other: what is coded before the first would say nothing of others.
    """
    if plan.stream is not None:
        raise ConfigError(
            "coded rows are made once, before the first round, from the samples that a client holds then; take "
            "[stream] out of the recipe, or take another method"
        )
    model = plan.costs.whole.module
    names, head = coded_names(model), head_names(model)
    layer = server.weights[head[0]]
    classes, features = layer.shape
    weights = {name: tensor for name, tensor in server.weights.items() if name not in head}
    weights |= {
        names[2]: torch.ones_like(layer[0, 0]),
        names[3]: layer.new_zeros(rows, features + len(head) - 1),
        names[4]: layer.new_zeros(rows, classes),
    }
    sent = tuple(name for name in server.weights if name not in head)
    sent_bytes = _counted_bytes(model, {name: server.weights[name] for name in sent})
    seed = derive_seed(plan.run_seed, purpose="coded rows") % 2**_FLOAT_BITS
    made: dict[int, Tensors] = {}
    tasks = []
    for task in tasks_for_cohort(server, plan):
        block, planned = _block(plan, task.client, rows)
        if block not in made:
            first = {step: weights[whole][:block] for step, whole in zip(names[:2], names[3:], strict=True)}
            made[block] = {**weights, **first}
        batches = -(-plan.costs.num_samples(task.client) // task.work.batch_size)
        tasks.append(
            replace(
                task,
                submodel=encoding_name(block),
                plan=planned,
                weights=made[block],
                sent=sent,
                sent_bytes=sent_bytes,
                work=replace(task.work, steps=batches * -(-rows // block), samples=None),
                options={
                    NAMES: names,
                    STEPS: plan.costs.steps(task.client, plan.work),
                    SEED: seed,
                    **options(task.client),
                },
            )
        )
    return tasks


def _block(plan: RoundPlan, client: int, rows: int) -> tuple[int, str | None]:
    """How many rows a client codes at once, as many as it can hold, and by which plan."""
    block = rows
    while True:
        quote = plan.costs.quote(client, encoding_name(block))
        if quote.fits or block == 1:
            return block, quote.plan
        block = max(block // _FEWER, 1)


def encoding_name(rows: int) -> str:
    """The submodel that codes so many rows at once."""
    return f"{ENCODE}.{rows}"


def coded_submodel(whole: Submodel, name: str) -> Submodel:
    """The step that trains the last layer ("head"), one that codes ("encode.256"), or the recipe's own ("")."""
    if not name:
        return whole
    return head_step(whole) if name == HEAD else encoding_step(whole, int(name.removeprefix(f"{ENCODE}.")))


def head_tasks(server: ServerState, plan: RoundPlan) -> list[ClientTask]:
    """The last layer to each client of the cohort; all layers to one from which nothing has come so far."""
    model = plan.costs.whole.module
    names, whole_bytes = head_names(model), _counted_bytes(model, server.weights)
    holders = set(_holders(server))
    return [
        replace(task, sent=names, options={NAMES: names})
        if task.client in holders
        else replace(task, sent_bytes=whole_bytes, options={NAMES: names})
        for task in tasks_for_cohort(server, plan)
    ]


def with_holders(server: ServerState, updates: Sequence[Update]) -> ServerState:
    """The server, which remembers that these clients have the frozen layers."""
    known = _holders(server)
    now = sorted({*known, *(update.client for update in updates)})
    return server if now == known else replace(server, extra={**server.extra, _HOLDERS: torch.tensor(now)})


def _holders(server: ServerState) -> list[int]:
    found = server.extra.get(_HOLDERS)
    return [] if found is None else [int(client) for client in found]


def _counted_bytes(model: nn.Module, weights: Tensors) -> int:
    """What the download of these tensors takes where random feature maps are made from a seed on the device."""
    drawn = drawn_bytes(model)
    return total_bytes(weights) - drawn + (_SEED_BYTES if drawn else 0)


def arrival(plan: RoundPlan, task: ClientTask, *, steps: int | None = None) -> float:
    """Probability that the client is back from its task before the round's deadline.

    Args:
        plan: Of the round.
        task: One of `head_tasks`.
        steps: That it makes; as many as its work has, where None.
    """
    if plan.costs.deadline_s is None:
        return 1.0
    up, down = task.options[NAMES], task.weights if task.sent is None else task.sent
    bytes_down = (
        total_bytes({name: task.weights[name] for name in down}) if task.sent_bytes is None else task.sent_bytes
    )
    return plan.costs.arrival_probability(
        task.client,
        steps=plan.costs.steps(task.client, task.work) if steps is None else steps,
        within_s=plan.costs.deadline_s,
        bytes_up=total_bytes({name: task.weights[name] for name in up}),
        bytes_down=bytes_down,
        submodel=task.submodel,
    )


def trained_names(server: ServerState, held: CodedSet | None, updates: Sequence[Update]) -> tuple[str, ...]:
    """The last layer's weight and, if it has one, its bias; empty where nobody says which layer it is."""
    if held is not None:
        head = held.head
    elif updates and updates[0].weights:
        head = min(updates[0].weights).rpartition(".")[0]
    else:
        return ()
    names = (f"{head}.{name}" if head else name for name in ("weight", "bias"))
    return tuple(name for name in names if name in server.weights)


def is_whole(update: Update, names: Sequence[str]) -> bool:
    """Whether an update holds the last layer."""
    return all(name in update.weights for name in names)
