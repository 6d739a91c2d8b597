"""The in-process driver: order of events, virtual durations, and tasks that fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.federation_parts import SHARDS, plan_book, prepared_step, small_model, workbench

from fedhybrid.engine.driver import InProcessDriver
from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import Workbench, one_thread
from fedhybrid.fleet import Fleet, TierSpec, VirtualClock, make_fleet
from fedhybrid.methods import METHODS
from fedhybrid.records import ClientTask, Failure, LocalWork, Update
from fedhybrid.tree import detached_copy, tensors_of, total_bytes

METHOD = METHODS["fedavg"]()
WORK = LocalWork(epochs=1, batch_size=8, lr=0.05)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A fleet of three devices and what they train with."""

    book: PlanBook
    bench: Workbench
    fleet: Fleet

    def driver(
        self, budgets_bytes: list[int] | None = None, shards: tuple[np.ndarray, ...] = SHARDS
    ) -> InProcessDriver:
        whole = self.book.eager_peak_bytes
        return InProcessDriver(
            fleet=self.fleet,
            budgets_bytes=np.array(budgets_bytes or [whole] * 3),
            shards=shards,
            method=METHOD,
            book=self.book,
            bench=self.bench,
            clock=VirtualClock(),
        )

    def task(self, client: int, *, work: LocalWork = WORK, seed: int = 1) -> ClientTask:
        weights = detached_copy(tensors_of(small_model()))
        return ClientTask(round_index=0, client=client, weights=weights, work=work, plan=None, seed=seed)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    model = small_model()
    with one_thread():
        prepared = prepared_step(model)
        book = plan_book(prepared, tmp_path_factory.mktemp("driver"), enabled=False)
        bench = workbench(model, prepared)
    return Scene(book=book, bench=bench, fleet=make_fleet([TierSpec(name="all", budget="100%", device="laptop")], 3, 0))


def test_events_come_in_the_order_of_the_clock(scene: Scene) -> None:
    driver = scene.driver()
    for client in (0, 1, 2):  # 40, 19 and 3 samples: the last submitted is done first
        driver.submit(client, scene.task(client))
    events = [driver.next_event() for _ in range(3)]
    assert [event.result.client for event in events if event] == [2, 1, 0]
    times = [event.at_s for event in events if event]
    assert times == sorted(times)
    assert driver.now() == times[-1]
    assert driver.next_event() is None


def test_ties_go_by_ticket(scene: Scene) -> None:
    driver = scene.driver(budgets_bytes=[1, 1, 1])  # all refused after equally long downloads
    tickets = [driver.submit(client, scene.task(client)) for client in (2, 0, 1)]
    events = [driver.next_event() for _ in range(3)]
    assert [event.ticket for event in events if event] == tickets


def test_duration_is_download_steps_and_upload(scene: Scene) -> None:
    driver, task = scene.driver(), scene.task(0)
    driver.submit(0, task)
    event = driver.next_event()
    device, sent_bytes = scene.fleet.tiers[0].device, total_bytes(task.weights)
    steps_s = 5 * scene.book.program("laptop", None).step_time_s
    expected_s = sent_bytes / device.downlink_bytes_per_s + steps_s + sent_bytes / device.uplink_bytes_per_s
    assert event is not None
    assert event.duration_s == pytest.approx(expected_s, rel=1e-12)
    assert isinstance(event.result, Update)
    assert event.result.steps == 5


def test_time_goes_on_from_the_submission(scene: Scene) -> None:
    driver = scene.driver()
    driver.submit(2, scene.task(2))
    first = driver.next_event()
    driver.submit(2, scene.task(2))
    second = driver.next_event()
    assert first is not None
    assert second is not None
    assert second.at_s == first.at_s + second.duration_s
    assert second.duration_s == first.duration_s


def test_nothing_ends_before_the_timeout(scene: Scene) -> None:
    driver = scene.driver()
    driver.submit(0, scene.task(0))
    assert driver.next_event(timeout_s=1e-9) is None
    assert driver.now() == 1e-9
    assert driver.next_event(timeout_s=1e9) is not None


def test_step_that_does_not_fit_is_a_failure_after_the_download(scene: Scene) -> None:
    whole = scene.book.eager_peak_bytes
    driver, task = scene.driver(budgets_bytes=[whole - 1, whole, whole]), scene.task(0)
    driver.submit(0, task)
    event = driver.next_event()
    assert event is not None
    assert isinstance(event.result, Failure)
    assert event.result.kind == "out_of_memory"
    assert event.result.ran is None
    assert f"{whole:,}" in event.result.detail
    assert event.duration_s == total_bytes(task.weights) / scene.fleet.tiers[0].device.downlink_bytes_per_s


def test_plan_larger_than_the_budget_is_a_failure(tmp_path: Path, scene: Scene) -> None:
    with one_thread():
        book = plan_book(prepared_step(small_model()), tmp_path)
    name = book.choose("laptop", book.eager_peak_bytes)
    planned = dataclasses.replace(scene, book=book)
    driver = planned.driver(budgets_bytes=[book.needed_bytes(name) - 1] * 3)
    driver.submit(0, dataclasses.replace(planned.task(0), plan=name))
    event = driver.next_event()
    assert event is not None
    assert isinstance(event.result, Failure)
    assert (event.result.kind, str(name) in event.result.detail) == ("out_of_memory", True)


@pytest.mark.parametrize(("samples", "last_batch"), [(0, "wrap"), (7, "drop")])
def test_too_little_data_is_a_failure(scene: Scene, samples: int, last_batch: str) -> None:
    driver = scene.driver(shards=(np.arange(samples), *SHARDS[1:]))
    driver.submit(0, scene.task(0, work=dataclasses.replace(WORK, last_batch=last_batch)))
    event = driver.next_event()
    assert event is not None
    assert isinstance(event.result, Failure)
    assert event.result.kind == "no_data"


def test_diverged_training_is_a_failure_and_the_next_task_is_not(scene: Scene) -> None:
    driver = scene.driver()
    with one_thread():
        driver.submit(0, scene.task(0, work=dataclasses.replace(WORK, lr=1e20, epochs=3)))
        bad = driver.next_event()
        driver.submit(1, scene.task(1))
        good = driver.next_event()
    assert bad is not None
    assert isinstance(bad.result, Failure)
    assert bad.result.kind == "non_finite"
    assert bad.result.ran is not None  # its peak and its upload count
    assert bad.result.ran.steps == 15
    assert bad.result.ran.measured_peak_bytes > scene.book.resident_bytes
    assert good is not None
    assert isinstance(good.result, Update)


def test_all_clients_can_be_reached(scene: Scene) -> None:
    assert scene.driver().clients().tolist() == [0, 1, 2]
