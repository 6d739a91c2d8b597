"""Worker processes do what this process does, to the last bit, whatever their number and the order of asking."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.federation_parts import SHARDS, WORK, attend_of, shop
from tests.scene_parts import Keeping, Scene, plain, scene, small_task
from tests.update_parts import bits_of

from fedhybrid.engine.crew import Crew
from fedhybrid.engine.labour import Job
from fedhybrid.engine.runtime import one_thread
from fedhybrid.engine.traffic import Delivery
from fedhybrid.engine.walk import Leg
from fedhybrid.methods import METHODS
from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.methods.local import train_locally
from fedhybrid.protocols import ClientRuntime, Method, Optimizer
from fedhybrid.records import ClientTask, Update
from fedhybrid.updates import Pipeline, parse_pipeline

SQUEEZED = parse_pipeline(
    [{"name": "delta"}, {"name": "error-feedback"}, {"name": "top-k", "ratio": 0.1}, {"name": "quantise", "bits": 4}],
    where="up",
)


def crew(made: Scene, method: Method, workers: int) -> Crew:
    with one_thread():
        return Crew(
            workers,
            method=method,
            bench=shop().bench,
            book=made.book,
            traffic=made.traffic,
            attend=attend_of(method),
        )


def jobs(book_plans: bool) -> list[Job]:
    """Tasks of all kinds: several models, plans that workers do not know yet, legs, states, evaluations."""
    book = shop().ladder if book_plans else shop().plain
    newer = {n: t + 0.01 if t.is_floating_point() else t for n, t in shop().weights.items()}
    found = []
    for number, client in enumerate((0, 1, 2, 0, 1, 2)):
        weights = newer if number >= 3 else shop().weights
        task = small_task(client, weights=weights, seed=number, round_index=number // 3, options={"number": number})
        plans = [book.choose("laptop", amount) for amount in (book.smallest_bytes, 920_000, book.eager_peak_bytes)]
        legs = [Leg(plan=plans[number % 3], steps=2), Leg(plan=plans[(number + 1) % 3], steps=9)]
        state = {"count": torch.tensor(number), "change": torch.rand(3)} if number % 2 else {}
        found.append(
            Job(
                task=task,
                device="laptop",
                legs=tuple(legs),
                shard=SHARDS[client],
                state=state,
                at_s=float(7 * number % 5),
            )
        )
        evaluate = dataclasses.replace(task, kind="evaluate")
        found.append(dataclasses.replace(found[-1], task=evaluate, legs=(), evaluation_batch=4, at_s=0.5))
    return found


def told(delivery: Delivery) -> Any:
    return plain(delivery.update), delivery.payload


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("up", [Pipeline(), SQUEEZED], ids=["plain", "squeezed"])
def test_same_bits_as_in_this_process(workers: int, up: Pipeline, tmp_path: Path) -> None:
    method = Keeping()
    made = scene(tmp_path, method=method, ladder=True, up=up)
    with closing(crew(made, method, workers)) as hands:  # before the plans are made, so that they must travel
        work = jobs(book_plans=True)
        for ticket, job in enumerate(work):
            made.labour.begin(ticket, job)
            hands.begin(ticket, job)
        for ticket in range(len(work)):
            assert told(hands.finish(ticket)) == told(made.labour.finish(ticket))


@settings(max_examples=12)
@given(data=st.data())
def test_order_of_asking_does_not_matter(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any interleaving of beginning, finishing and dropping gives the same results."""
    folder = tmp_path_factory.mktemp("crew")
    method = METHODS["fedavg"]()
    made, work = scene(folder, method=method), jobs(book_plans=False)
    expected = results_in_this_process(made, work)
    with closing(crew(made, method, data.draw(st.integers(1, 3)))) as hands:
        begun: set[int] = set()
        left = data.draw(st.permutations(range(len(work))))
        while left or begun:
            may = (["begin"] if left else []) + (["finish", "drop"] if begun else [])
            move = data.draw(st.sampled_from(may))
            if move == "begin":
                begun.add(left[0])
                hands.begin(left[0], work[left[0]])
                left = left[1:]
                continue
            ticket = data.draw(st.sampled_from(sorted(begun)))
            begun.remove(ticket)
            if move == "finish":
                assert told(hands.finish(ticket)) == expected[ticket]
            else:
                hands.drop(ticket)


class Dictionary(dict[str, torch.Tensor]):
    """One whose end can be seen."""


def test_the_model_that_a_worker_has_is_kept_alive(tmp_path: Path) -> None:
    """It is known by its identity, which another would have after its end; the one before it is let go."""
    method = METHODS["fedavg"]()
    made, (job, *_) = scene(tmp_path, method=method), jobs(book_plans=False)
    alive = []
    with closing(crew(made, method, 1)) as hands:
        for number in range(4):
            weights = Dictionary({n: t * (1 + number / 10) for n, t in shop().weights.items() if t.is_floating_point()})
            weights = Dictionary(shop().weights | weights)
            task = dataclasses.replace(job.task, weights=weights)
            made.labour.begin(number, dataclasses.replace(job, task=task))
            hands.begin(number, dataclasses.replace(job, task=task))
            assert told(hands.finish(number)) == told(made.labour.finish(number))
            alive.append(weakref.ref(weights))
            del weights, task
        assert [each() is not None for each in alive] == [False, False, False, True]


def results_in_this_process(made: Scene, work: list[Job]) -> list[Any]:
    found = []
    for ticket, job in enumerate(work):
        made.labour.begin(ticket, job)
        found.append(told(made.labour.finish(ticket)))
    return found


def test_drivers_see_no_difference(tmp_path: Path) -> None:
    """A driver with a crew gives the events of one without, tasks that are given up among them."""
    seen = []
    for workers in (0, 2):
        method = Keeping()
        made = scene(tmp_path / str(workers), method=method, up=SQUEEZED)
        hands = crew(made, method, workers) if workers else made.labour
        driver = made.driver(labour=hands)
        with closing(driver):
            tickets = [driver.submit(client, small_task(client)) for client in (0, 1, 2)]
            cancelled = driver.cancel(tickets[1])
            driver.submit(1, small_task(1, seed=9))
            events = [cancelled]
            while (event := driver.next_event()) is not None:
                events.append(event)
        seen.append([(event.ticket, event.at_s, plain(event.result), event.cost) for event in events])
        assert len(seen[-1]) == 4
    assert seen[0] == seen[1]


def test_updates_that_are_no_numbers_travel_too(tmp_path: Path) -> None:
    """Training that diverges is a matter of the client, not the end of its worker."""
    method = METHODS["fedavg"]()
    made = scene(tmp_path, method=method)
    diverging = small_task(0, work=dataclasses.replace(WORK, lr=1e20, epochs=3))
    job = dataclasses.replace(jobs(book_plans=False)[0], task=diverging)
    with closing(crew(made, method, 1)) as hands:
        hands.begin(0, job)
        update = hands.finish(0).update
        made.labour.begin(0, job)
        here = made.labour.finish(0).update
    assert not math.isfinite(update.loss_mean)
    assert [repr(each.loss_mean) for each in (update, here)] == [repr(here.loss_mean)] * 2
    assert bits_of(update.weights) == bits_of(here.weights)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd(AbstractAveraging):
    """Fails, or does nothing for a long time, where a task's options say so."""

    @property
    def plans(self) -> bool:
        return False

    def optimizer(self, base: Optimizer) -> Optimizer:
        return base

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        if task.options.get("sleep"):
            time.sleep(60)
        if task.options.get("fail"):
            raise ValueError("this task cannot be done")
        return train_locally(task, client)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Crew]:
    made = scene(tmp_path, method=Odd())
    with closing(crew(made, Odd(), 2)) as hands:
        yield hands


def odd_job(**options: Any) -> Job:
    job = jobs(book_plans=False)[0]
    return dataclasses.replace(job, task=dataclasses.replace(job.task, options=options))


def test_an_exception_in_a_worker_is_told(odd: Crew) -> None:
    odd.begin(0, odd_job(fail=True))
    with pytest.raises(RuntimeError, match="a worker process failed: ValueError: this task cannot be done"):
        odd.finish(0)


def test_a_killed_worker_is_told(odd: Crew) -> None:
    odd.begin(0, odd_job(sleep=True))
    os.kill(odd._workers[0].process.pid or 0, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="a worker process ended with exit code -9; was it killed"):
        odd.finish(0)


def test_a_worker_that_was_killed_while_idle_is_told(odd: Crew) -> None:
    process = odd._workers[0].process
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()

    def ask() -> None:
        odd.begin(0, odd_job())
        odd.finish(0)

    with pytest.raises(RuntimeError, match="a worker process ended with exit code -9"):
        ask()


def test_closing_leaves_no_process_behind_not_even_a_busy_one(tmp_path: Path) -> None:
    made = scene(tmp_path, method=Odd())
    hands = crew(made, Odd(), 3)
    numbers = [worker.process.pid for worker in hands._workers]
    hands.begin(0, odd_job(sleep=True))
    hands.begin(1, odd_job())
    began_s = time.monotonic()
    hands.close()
    assert time.monotonic() - began_s < 5
    for number in numbers:
        assert number is not None
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
    hands.close()  # once more does no harm


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Without anybody to close the crew: the parent is a process of its own here, and is killed."""
    made = scene(tmp_path, method=Odd())
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process do not matter here
        parent = os.fork()
    if parent == 0:
        try:
            hands = crew(made, Odd(), 2)
            os.write(writing, " ".join(str(worker.process.pid) for worker in hands._workers).encode())
            time.sleep(60)
        finally:
            os._exit(1)
    numbers = [int(number) for number in os.read(reading, 100).split()]
    assert len(numbers) == 2
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s and any(_is_alive(number) for number in numbers):
        time.sleep(0.01)
    assert not any(_is_alive(number) for number in numbers)
    os.close(reading)
    os.close(writing)


def _is_alive(number: int) -> bool:
    """Whether a process is there and no zombie, which it stays where nobody asks for orphans' ends."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
