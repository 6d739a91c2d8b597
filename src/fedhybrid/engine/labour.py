"""Who does the training: this very process, task after task when its result is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, final

import torch

from fedhybrid.engine.runtime import Ask, Stretch, Workbench, of_classes
from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.engine.walk import Leg
from fedhybrid.planner import Plan
from fedhybrid.protocols import Attendant, Method
from fedhybrid.records import ClientTask, IntArray, Update
from fedhybrid.tree import Tensors, total_bytes

__all__ = ["Attend", "InThisProcess", "Job", "Labour", "Programs", "Talk", "do_job"]


Attend = Callable[[ClientTask], Attendant | None]  # the server's side of a task, where it has one


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A task with all that its client needs.

    Attributes:
        task: What to do.
        device: Name of the client's profile.
        legs: Its programs.
        shard: The client's sample numbers.
        state: What the client has kept.
        at_s: When it ends on the virtual clock, which says whose result is wanted first.
        evaluation_batch: Samples of a batch, for tasks of the kind "evaluate".
    """

    task: ClientTask
    device: str
    legs: tuple[Leg, ...]
    shard: IntArray
    state: Tensors
    at_s: float
    evaluation_batch: int = 0


class Programs(Protocol):
    """What a job's plans mean: a plan book, or what a device was sent."""

    def program(self, device: str, plan: str | None, submodel: str = "") -> Plan:
        """The plan of that name; for None, the one of the submodel that decides nothing."""
        ...


class Labour(Protocol):
    """Does jobs. A job's result depends on the job alone, so neither order nor number of hands changes it."""

    def begin(self, ticket: int, job: Job) -> None:
        """Takes a job on; it may be worked at from now on."""
        ...

    def finish(self, ticket: int) -> Delivery:
        """The job's result; waits for it."""
        ...

    def drop(self, ticket: int) -> None:
        """Nobody wants this job's result any more."""
        ...

    def close(self) -> None:
        """The end; what is still being done is given up."""
        ...


def do_job(
    job: Job,
    method: Method,
    bench: Workbench,
    book: Programs,
    traffic: Traffic,
    *,
    attend: Attend | None = None,
    ask: Ask | None = None,
) -> Delivery:
    """Does a job: what the client computes, and how it packs what it sends.

    Args:
        job: What to do.
        method: Whose client side it is.
        bench: Where.
        book: Has the job's programs.
        traffic: Packs what is sent.
        attend: Makes the server's side of the task, where this process is the server too.
        ask: Takes questions to the server, where it is elsewhere.
    """
    if job.task.kind == "evaluate":
        return Delivery(update=_evaluated(job, method, bench))
    attendant = attend(job.task) if attend is not None else None
    talk = Talk(ask or (attendant.answer if attendant else None))
    stretches = [
        Stretch(program=book.program(job.device, leg.plan, job.task.submodel), steps=leg.steps) for leg in job.legs
    ]
    update = bench.run(method, job.task, job.shard, stretches, job.state, ask=talk.ask if talk else None)
    return replace(
        traffic.packed(update, job.task, job.state),
        served=attendant.result() if attendant else {},
        served_s=attendant.compute_s if attendant else 0.0,
        asked_bytes=talk.asked_bytes,
        answered_bytes=talk.answered_bytes,
    )


class Talk:
    """Counts what goes to and fro between a client and the server in the middle of a task; false where nothing can."""

    def __init__(self, ask: Ask | None) -> None:
        self._ask = ask
        self.asked_bytes = self.answered_bytes = 0

    def __bool__(self) -> bool:
        return self._ask is not None

    def ask(self, question: Tensors) -> Tensors:
        """The answer to a question."""
        assert self._ask is not None
        self.asked_bytes += total_bytes(question)
        answer = self._ask(question)
        self.answered_bytes += total_bytes(answer)
        return answer


def _evaluated(job: Job, method: Method, bench: Workbench) -> Update:
    """The model on the client's own data; nothing is learnt, and no more than a batch is held at once."""
    task, shard = job.task, of_classes(job.shard, bench.split.labels, job.task.classes)
    samples = len(shard)
    weights = method.personal(bench.model, task.weights, job.state) if method.is_personal else task.weights
    bench.evaluator.load(weights)
    bench.evaluator.see(task.classes)
    peak_bytes = bench.sizes.peak_bytes(job.evaluation_batch)
    right = 0
    loss_sum = squared_loss_sum = 0.0
    for chosen in torch.split(torch.from_numpy(shard), job.evaluation_batch):
        correct, losses = bench.evaluator.answers(chosen, job.evaluation_batch)
        right += int(correct.sum())
        loss_sum += float(losses.sum())
        squared_loss_sum += float(losses.square().sum())
    return Update(
        client=task.client,
        round_index=task.round_index,
        weights={},
        num_samples=samples,
        samples_seen=samples,
        steps=0,
        loss_mean=loss_sum / samples,
        squared_loss_sum=squared_loss_sum,
        measured_peak_bytes=peak_bytes,
        kind=task.kind,
        metrics={"accuracy": right / samples},
    )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class InThisProcess:
    """Works when asked for a result."""

    method: Method
    bench: Workbench
    book: Programs
    traffic: Traffic
    attend: Attend
    jobs: dict[int, Job] = field(default_factory=dict)

    def begin(self, ticket: int, job: Job) -> None:
        """Notes it."""
        self.jobs[ticket] = job

    def finish(self, ticket: int) -> Delivery:
        """Does it now."""
        job = self.jobs.pop(ticket)
        return do_job(job, self.method, self.bench, self.book, self.traffic, attend=self.attend)

    def drop(self, ticket: int) -> None:
        """Forgets it."""
        self.jobs.pop(ticket, None)

    def close(self) -> None:
        """Nothing to end."""
        self.jobs.clear()
