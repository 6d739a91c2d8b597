"""Worker processes: the same jobs on several cores, the same results whatever their number.

Workers are forks of this process, made once everything is in place: model, captured step, plans and data are shared
pages and cost no second start-up. A job and its result travel as tensors and JSON; nothing is pickled. A worker ends
when its pipe does, so none outlives a run that is killed.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, final

import torch

from fedhybrid.engine.bundle import pack_bundle, unpack_bundle
from fedhybrid.engine.labour import Attend, Job, do_job
from fedhybrid.engine.parcels import delivery_from, delivery_parts, job_from, job_parts
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import Workbench
from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.errors import ConfigError
from fedhybrid.planner import Plan
from fedhybrid.protocols import Method
from fedhybrid.tree import Tensors

__all__ = ["Crew"]


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    ticket: int | None = None
    model: int | None = None  # identity of the weights that it has; the job that they came with is kept alive
    kept: Job | None = None
    plans: set[str] = field(default_factory=set)


@final
class Crew:
    """Implements `Labour` with `workers` processes; jobs are begun in the order in which their results are wanted."""

    def __init__(
        self, workers: int, *, method: Method, bench: Workbench, book: PlanBook, traffic: Traffic, attend: Attend
    ) -> None:
        if not hasattr(os, "fork") or sys.platform == "darwin":
            raise ConfigError(
                "workers above 1 needs a system on which a process can be forked safely (Linux); use workers = 1"
            )
        self._book = book
        self._waiting: list[tuple[float, int]] = []
        self._jobs: dict[int, Job] = {}
        self._done: dict[int, Delivery] = {}
        self._dropped: set[int] = set()

        def do(job: Job) -> Delivery:
            return do_job(job, method, bench, book, traffic, attend=attend)

        context = multiprocessing.get_context("fork")
        self._workers: list[_Worker] = []
        known = book.names
        for _ in range(workers):
            ours, theirs = context.Pipe()
            others = [worker.pipe for worker in self._workers] + [ours]
            process = context.Process(target=_serve, args=(theirs, others, do, book), daemon=True)
            with warnings.catch_warnings():
                # Threads that draw progress may exist; a worker touches nothing of theirs.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            self._workers.append(_Worker(process=process, pipe=ours, plans=set(known)))

    def begin(self, ticket: int, job: Job) -> None:
        """Gives it to a worker, at once if one is free."""
        self._jobs[ticket] = job
        heapq.heappush(self._waiting, (job.at_s, ticket))
        self._hand_out()

    def finish(self, ticket: int) -> Delivery:
        """Waits until a worker has done it."""
        while ticket not in self._done:
            busy = {worker.pipe: worker for worker in self._workers if worker.ticket is not None}
            assert busy, f"job {ticket} is nobody's"
            for pipe in wait(list(busy)):
                self._take(busy[pipe])  # type: ignore[index]
            self._hand_out()
        return self._done.pop(ticket)

    def drop(self, ticket: int) -> None:
        """Takes it away from those who wait; what a worker has begun is thrown away when it comes."""
        self._jobs.pop(ticket, None)
        self._done.pop(ticket, None)
        if any(worker.ticket == ticket for worker in self._workers):
            self._dropped.add(ticket)

    def close(self) -> None:
        """Stops the workers."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
            worker.process.join()
            worker.process.close()
        self._workers.clear()

    def _hand_out(self) -> None:
        for worker in self._workers:
            while worker.ticket is None and self._waiting:
                _, ticket = heapq.heappop(self._waiting)
                if (job := self._jobs.pop(ticket, None)) is not None:
                    self._give(worker, ticket, job)

    def _give(self, worker: _Worker, ticket: int, job: Job) -> None:
        news = {leg.plan for leg in job.legs if leg.plan is not None} - worker.plans
        plans = {name: self._book.program(job.device, name).to_json() for name in sorted(news)}
        same = worker.model == id(job.task.weights)
        header, groups = job_parts(job, model=not same)
        try:
            worker.pipe.send_bytes(pack_bundle(header | {"plans": plans}, groups))
        except OSError as error:
            raise _died(worker) from error
        worker.ticket, worker.model, worker.kept = ticket, id(job.task.weights), job
        worker.plans |= news

    def _take(self, worker: _Worker) -> None:
        try:
            packed = worker.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise _died(worker) from error
        header, groups = unpack_bundle(packed)
        if (said := header.get("error")) is not None:
            raise RuntimeError(f"a worker process failed: {said}")
        ticket, worker.ticket = worker.ticket, None
        assert ticket is not None
        if ticket in self._dropped:
            self._dropped.remove(ticket)
            return
        self._done[ticket] = delivery_from(header, groups)


def _died(worker: _Worker) -> RuntimeError:
    worker.process.join(timeout=5)
    return RuntimeError(
        f"a worker process ended with exit code {worker.process.exitcode}; was it killed, or out of memory? Go on with "
        "--resume, perhaps with fewer workers"
    )


def _serve(pipe: Connection, others: list[Connection], do: Callable[[Job], Delivery], book: PlanBook) -> None:
    """A worker's life."""
    for each in others:
        each.close()  # or the end of the parent would not end the pipes of the workers before this one
    torch.set_num_threads(1)
    model: Tensors = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            header, groups = unpack_bundle(pipe.recv_bytes())
            model = groups.get("model", model)
            for name, text in header["plans"].items():
                book.learn(name, Plan.from_json(text))
            pipe.send_bytes(_answer(header, groups, model, do))
    os._exit(0)  # not the parent's clean-up


def _answer(header: dict[str, Any], groups: dict[str, Tensors], model: Tensors, do: Callable[[Job], Delivery]) -> bytes:
    try:
        return pack_bundle(*delivery_parts(do(job_from(header, groups, model=model))), allow_nan=True)
    except Exception as error:  # whatever it is, the parent must hear of it
        return pack_bundle({"error": f"{type(error).__name__}: {error}"}, {})
