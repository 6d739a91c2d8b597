"""What a task goes through on its device before its upload: how long it computes, and what befalls it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from fedhybrid.data import Shards
from fedhybrid.devices import DeviceProfile
from fedhybrid.engine.budgets import Budgets
from fedhybrid.engine.evaluate import EvaluationSizes
from fedhybrid.engine.faults import Fault, Faults
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import of_classes, steps_of
from fedhybrid.engine.traffic import Traffic
from fedhybrid.engine.walk import Walk, walk
from fedhybrid.fleet import Fleet
from fedhybrid.records import ClientTask, Failure, Update

__all__ = ["Journey", "JourneyPlanner", "failure_of", "figures_of"]

_PATIENCE = 3.0  # of the time that a task should take: when it is given up where no time-out is set
_FORWARD_SHARE = 1 / 3  # of a training step: the usual reckoning that a backward pass costs two forward passes


@dataclass(frozen=True, kw_only=True, eq=False)
class Journey:
    """A task under way; `task` is what the client received, `given` what the server meant."""

    task: ClientTask
    given: ClientTask
    start_s: float
    bytes_down: int
    compute_from_s: float
    walk: Walk
    fault: Fault | None
    online_until_s: float
    promised_bytes: int
    evaluation_batch: int

    @property
    def computed_s(self) -> float:
        """When its computing ends, if nothing happens before."""
        return self.compute_from_s + self.walk.seconds


@final
class JourneyPlanner:
    """Knows each task's journey when the task is given out; it follows from the task, its client and the time alone."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        budgets: Budgets,
        shards: Shards,
        book: PlanBook,
        traffic: Traffic,
        faults: Faults,
        sizes: EvaluationSizes,
        timeout_s: float | None,
        labels: Tensor | None = None,
    ) -> None:
        self._fleet, self._budgets, self._book = fleet, budgets, book
        self._shards, self._sizes_held, self._labels = shards, shards.sizes, labels
        self._traffic, self._faults, self._sizes, self._timeout_s = traffic, faults, sizes, timeout_s

    def device(self, client: int) -> DeviceProfile:
        """The client's profile."""
        return self._fleet.tier_of(client).device

    def recall(self, given: ClientTask, start_s: float) -> None:
        """Makes the plan known that a task was given before a stop: a plan book begins empty, its files are there."""
        if given.plan is not None:
            promised_bytes = self._budgets.promised_one(given.client, start_s)
            self._book.choose(self.device(given.client).name, promised_bytes, given.submodel)

    def begin(self, given: ClientTask, start_s: float) -> tuple[Journey, float, Failure | None]:
        """The journey of a task, when its computing ends, and why it comes to nothing by then, if it does."""
        client = given.client
        weights, bytes_down = self._traffic.sent_down(given.weights, version=given.round_index, names=given.sent)
        bytes_down = bytes_down if given.sent_bytes is None else given.sent_bytes
        task = replace(given, weights=weights)
        journey = Journey(
            task=task,
            given=given,
            start_s=start_s,
            bytes_down=bytes_down,
            compute_from_s=start_s + bytes_down / self.device(client).downlink_bytes_per_s,
            walk=Walk(legs=(), seconds=0.0),
            fault=self._faults.of(task, start_s) if self._faults else None,
            online_until_s=self._fleet.online_until_s(client, start_s),
            promised_bytes=self._budgets.promised_one(client, start_s),
            evaluation_batch=0,
        )
        if task.kind == "evaluate":
            now_bytes = self._left_then(client, journey.compute_from_s, journey.compute_from_s)
            journey = replace(journey, evaluation_batch=self._sizes.largest(min(journey.promised_bytes, now_bytes)))
        failure = self._refusal(journey)
        if failure is not None:
            ends = [(journey.compute_from_s, failure.kind, failure.detail)]
            at_s, kind, detail = min(ends + self.cut_off(journey, journey.compute_from_s))
            return journey, at_s, failure_of(task, kind, detail)
        journey = replace(journey, walk=self._walked(journey))
        return journey, *self._computed(journey)

    def _left_then(self, client: int, start_s: float, end_s: float) -> int:
        """The least that the client's other apps leave in that time; no limit where budgets stand still."""
        left = self._budgets.left(client)
        return sys.maxsize if left is None else int(left(start_s, end_s)[1].min())

    def _refusal(self, journey: Journey) -> Failure | None:
        """Why a task does not even begin."""
        task, budget_bytes = journey.task, journey.promised_bytes
        num_samples = self._num_samples(task)
        if task.kind == "query":
            return None
        if task.kind == "evaluate":
            if num_samples == 0:
                return failure_of(task, "no_data", "the client holds no samples")
            if journey.evaluation_batch == 0:
                detail = (
                    f"one sample at a time needs {self._sizes.peak_bytes(1):,} bytes, the budget is {budget_bytes:,}"
                )
                return failure_of(task, "out_of_memory", detail)
            return None
        needed_bytes = self._book.needed_bytes(task.plan, task.submodel)
        if needed_bytes > budget_bytes:
            what = "the unplanned step" if task.plan is None else f"plan {task.plan}"
            if task.plan is None and self._book.enabled:
                least_bytes = self._book.shelf(task.submodel).least_bytes(self.device(task.client).name)
                what, needed_bytes = "the smallest plan", least_bytes
            detail = f"{what} needs {needed_bytes:,} bytes, the budget is {budget_bytes:,}"
            return failure_of(task, "out_of_memory", detail)
        if steps_of(task.work, num_samples) == 0:
            return failure_of(task, "no_data", f"{num_samples} samples make no batch of {task.work.batch_size}")
        return None

    def _num_samples(self, task: ClientTask) -> int:
        """Of the client, those that take part."""
        if task.classes is None or self._labels is None:
            return int(self._sizes_held[task.client])
        return len(of_classes(self._shards[task.client], self._labels, task.classes))

    def _walked(self, journey: Journey) -> Walk:
        task, client = journey.task, journey.task.client
        device, speed_factor = self.device(client).name, self._budgets.speed_factor(client)
        speed_factor *= self._fleet.slowdown(client, task.seed)
        num_samples = self._num_samples(task)
        if task.kind == "query":
            return Walk(legs=(), seconds=0.0)
        if task.kind == "evaluate":
            step_s = self._book.program(device, None).step_time_s
            seconds = _FORWARD_SHARE * step_s * speed_factor * num_samples / task.work.batch_size
            begins_s = journey.compute_from_s
            least_bytes = self._left_then(client, begins_s, begins_s + seconds)
            fell = least_bytes < self._sizes.peak_bytes(journey.evaluation_batch)
            return Walk(legs=(), seconds=seconds, violations_s=(begins_s,) if fell else ())
        return walk(
            self._book.shelf(task.submodel),
            device,
            plan=task.plan,
            steps=steps_of(task.work, num_samples),
            promised_bytes=journey.promised_bytes,
            start_s=journey.compute_from_s,
            speed_factor=speed_factor,
            left=self._budgets.left(client),
        )

    def _computed(self, journey: Journey) -> tuple[float, Failure | None]:
        """When its computing ends, and why before its last step, if it does."""
        task, fault = journey.task, journey.fault
        ends: list[tuple[float, str, str]] = []
        if journey.walk.stopped is not None:
            ends.append((journey.computed_s, "out_of_memory", journey.walk.stopped))
        if fault is not None and fault.kind in ("crash", "out_of_memory"):
            what = "the program crashed" if fault.kind == "crash" else "the system ended the program for lack of memory"
            at_s = journey.compute_from_s + fault.at_ratio * journey.walk.seconds
            ends.append((at_s, fault.kind, f"{what} after {fault.at_ratio:.0%} of its computing"))
        if fault is not None and fault.kind == "time_out":
            given_up_s = self._timeout_s or _PATIENCE * (journey.computed_s - journey.start_s)
            ends.append((journey.start_s + given_up_s, "time_out", f"nothing was heard of it for {given_up_s:.1f} s"))
        if fault is not None and fault.kind == "disconnected":
            upload_s = self._upload_bytes(task) / self.device(task.client).uplink_bytes_per_s
            lost_s = journey.computed_s + fault.at_ratio * upload_s
            ends.append((lost_s, "disconnected", f"the connection was lost after {fault.at_ratio:.0%} of its upload"))
        if ends:
            ends += self.cut_off(journey, math.inf)
            at_s, kind, detail = min(ends)
            return at_s, failure_of(task, kind, detail)
        if cut_off := self.cut_off(journey, journey.computed_s):
            at_s, kind, detail = min(cut_off)
            return at_s, failure_of(task, kind, detail)
        return journey.computed_s, None

    def _upload_bytes(self, task: ClientTask) -> int:
        """What the client would send: what its submodel trains; figures, as of other tasks, count for nothing here."""
        if task.kind != "train":
            return 0
        names = self._book.shelf(task.submodel).trained if task.submodel else task.weights
        return self._traffic.expected_bytes({n: task.weights[n] for n in names}, version=task.round_index)[1]

    def lost_bytes(self, journey: Journey, at_s: float) -> int:
        """What has been sent by `at_s` of an upload that is to be lost on the way."""
        if journey.fault is None or journey.fault.kind != "disconnected":
            return 0
        return max(0, int((at_s - journey.computed_s) * self.device(journey.task.client).uplink_bytes_per_s))

    def cut_off(self, journey: Journey, before_s: float) -> list[tuple[float, str, str]]:
        """What ends a task from outside before that time."""
        ends = [(journey.online_until_s, "disconnected", "the device went offline")]
        if self._timeout_s is not None:
            detail = f"not back after {self._timeout_s:.1f} s"
            ends.append((journey.start_s + self._timeout_s, "time_out", detail))
        return [end for end in ends if end[0] < before_s]


def failure_of(task: ClientTask, kind: str, detail: str, ran: Update | None = None) -> Failure:
    """A task's failure."""
    return Failure(client=task.client, round_index=task.round_index, kind=kind, detail=detail, ran=ran)


def figures_of(update: Update) -> Update:
    """An update without its tensors: what a failure keeps of what came, so that a cohort of them takes no memory."""
    return replace(update, weights={}, masks={}, state=None)
