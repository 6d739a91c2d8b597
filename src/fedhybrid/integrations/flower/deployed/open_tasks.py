"""What the server remembers of a task that a node works at, and how long it waits for whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Error

from fedhybrid.engine.evaluate import EvaluationSizes
from fedhybrid.engine.journey import failure_of
from fedhybrid.engine.labour import Job
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import steps_of
from fedhybrid.engine.walk import Leg
from fedhybrid.integrations.flower.deployed.nodes import Node, readable
from fedhybrid.integrations.flower.private import ErrorCode
from fedhybrid.protocols import Attendant
from fedhybrid.records import ClientTask, Failure
from fedhybrid.tree import Tensors

__all__ = ["OpenTask", "Patience", "carried", "job_of", "refusal_of", "why_lost"]

# What Flower itself answers for a node that has gone, with the message or before it.
_UNREACHABLE = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long is waited for whom.

    Attributes:
        task_s: For a task's end, or its next question. A node that is gone is noticed much sooner, so this is for
            programs that hang.
        join_s: For a node's answer when it registers: it loads data and captures its step.
        ping_s: After so long a node that works is asked whether it is still there. Nodes answer in turn: one that
            answers this, and has not answered its task, was started anew.
        doubt_s: For the task's answer after that one, in case they have overtaken each other.
    """

    task_s: float = 3600.0
    join_s: float = 300.0
    ping_s: float = 15.0
    doubt_s: float = 2.0


@dataclass(kw_only=True)
class OpenTask:
    """A task under way.

    Attributes:
        ticket: Of its submission.
        given: What the server meant.
        task: What the client receives.
        node_id: Who does it.
        start_s: When it was sent.
        heard_s: When its node was last heard of.
        budget_bytes: What the node promised.
        needed_bytes: What its plan needs.
        bytes_down: Sent to the node.
        attendant: The server's side, where its client asks.
        planned_peak_bytes: Of its plan; None where none runs.
        asked_bytes: Of the questions so far.
        answered_bytes: Of the answers.
        suspect_s: When its node said that it has nothing to do.
    """

    ticket: int
    given: ClientTask
    task: ClientTask
    node_id: int
    start_s: float
    heard_s: float
    budget_bytes: int
    needed_bytes: int
    bytes_down: int
    attendant: Attendant | None
    planned_peak_bytes: int | None
    asked_bytes: int = 0
    answered_bytes: int = 0
    suspect_s: float | None = None

    def failed(self, kind: str, detail: str) -> Failure:
        """The task's end without an update."""
        return failure_of(self.task, kind, detail)


def refusal_of(each: OpenTask, node: Node, sizes: EvaluationSizes, book: PlanBook) -> Failure | None:
    """Why a task is not even sent to its node."""
    task = each.task
    if task.kind == "evaluate":
        if not node.num_samples:
            return each.failed("no_data", "the client holds no samples")
        fits = sizes.largest(each.budget_bytes) > 0
        return None if fits else each.failed("out_of_memory", "not even one sample can be tested in its budget")
    if each.needed_bytes > each.budget_bytes:
        needed_bytes = each.needed_bytes if task.plan else book.shelf(task.submodel).least_bytes(node.device.name)
        detail = f"the smallest that runs needs {needed_bytes:,} bytes, the budget is {each.budget_bytes:,}"
        return each.failed("out_of_memory", detail)
    if steps_of(task.work, node.num_samples or 0) == 0:
        return each.failed("no_data", f"{node.num_samples} samples make no batch of {task.work.batch_size}")
    return None


def carried(task: ClientTask, book: PlanBook) -> Tensors:
    """What of the task's model travels: the submodel's tensors. A device keeps none from task to task (`task.sent`)."""
    if task.kind == "evaluate" or not task.submodel:
        return task.weights
    wanted = book.shelf(task.submodel).tensors
    return {name: tensor for name, tensor in task.weights.items() if name in wanted}


def job_of(each: OpenTask, node: Node, sizes: EvaluationSizes) -> Job:
    """What the node is sent; it knows itself what it holds and keeps."""
    task = each.task
    testing = task.kind == "evaluate"
    return Job(
        task=task,
        device=node.device.name,
        legs=() if testing else (Leg(plan=task.plan, steps=steps_of(task.work, node.num_samples or 0)),),
        shard=np.zeros(0, dtype=np.int64),
        state={},
        at_s=0.0,
        evaluation_batch=sizes.largest(each.budget_bytes) if testing else 0,
    )


def why_lost(error: Error) -> tuple[str, str]:
    """The kind of failure that Flower's own answer stands for, and what happened, in words."""
    if error.code in _UNREACHABLE:
        return "disconnected", readable(f"the device is not there: {error.reason}")
    return "crash", readable(f"the device's program failed: {error.reason}")
