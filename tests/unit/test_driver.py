"""The in-process driver: order of events, virtual durations, what is counted, and going on after a stop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.federation_parts import SHARDS, WORK, shop
from tests.scene_parts import Keeping, same_tensors, scene, small_fleet, small_task, told

from fedhybrid.data import DealtShards
from fedhybrid.engine.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedhybrid.engine.driver import InProcessDriver
from fedhybrid.engine.faults import Faults
from fedhybrid.engine.runtime import one_thread
from fedhybrid.engine.states import ClientStates
from fedhybrid.fleet import AvailabilitySpec, make_availability
from fedhybrid.protocols import Driver, ServerState
from fedhybrid.records import Failure, TaskEvent, Update
from fedhybrid.tree import Tensors, total_bytes
from fedhybrid.updates import Pipeline, parse_pipeline

SQUEEZED = parse_pipeline(
    [{"name": "delta"}, {"name": "error-feedback"}, {"name": "top-k", "ratio": 0.1}, {"name": "quantise", "bits": 4}],
    where="up",
)
EIGHT_BITS = parse_pipeline([{"name": "quantise", "bits": 8}], where="down")


def ended(driver: Driver) -> TaskEvent:
    event = driver.next_event()
    assert event is not None
    return event


def completed(driver: Driver) -> tuple[TaskEvent, Update]:
    event = ended(driver)
    assert isinstance(event.result, Update), event.result
    return event, event.result


def failed(driver: Driver) -> tuple[TaskEvent, Failure]:
    event = ended(driver)
    assert isinstance(event.result, Failure)
    return event, event.result


class TestOrder:
    def test_events_come_in_the_order_of_the_clock(self, tmp_path: Path) -> None:
        driver = scene(tmp_path).driver()
        for client in (0, 1, 2):  # 40, 19 and 3 samples: the last submitted is done first
            driver.submit(client, small_task(client))
        events = [ended(driver) for _ in range(3)]
        assert [event.result.client for event in events] == [2, 1, 0]
        times = [event.at_s for event in events]
        assert times == sorted(times)
        assert driver.now() == times[-1]
        assert driver.next_event() is None
        assert driver.busy == frozenset()

    def test_ties_go_by_ticket(self, tmp_path: Path) -> None:
        driver = scene(tmp_path, small_fleet((1, 1, 1))).driver()  # all refused after equally long downloads
        tickets = [driver.submit(client, small_task(client)) for client in (2, 0, 1)]
        events = [ended(driver) for _ in range(3)]
        assert [event.ticket for event in events] == tickets
        assert len({event.at_s for event in events}) == 1

    def test_ties_of_updates_go_by_ticket(self, tmp_path: Path) -> None:
        alike = DealtShards.of([np.arange(8), np.arange(8, 16), np.arange(16, 24)])
        driver = scene(tmp_path, shards=alike).driver()
        tickets = [driver.submit(client, small_task(client)) for client in (1, 2, 0)]
        assert [completed(driver)[0].ticket for _ in range(3)] == tickets

    def test_time_goes_on_from_the_submission(self, tmp_path: Path) -> None:
        driver = scene(tmp_path).driver()
        driver.submit(2, small_task(2))
        first = ended(driver)
        driver.submit(2, small_task(2))
        second = ended(driver)
        assert second.at_s == first.at_s + second.duration_s
        assert second.duration_s == pytest.approx(first.duration_s, rel=1e-12)

    def test_nothing_ends_before_the_timeout(self, tmp_path: Path) -> None:
        driver = scene(tmp_path).driver()
        driver.submit(0, small_task(0))
        assert driver.next_event(timeout_s=1e-9) is None
        assert driver.now() == 1e-9
        assert driver.next_event(timeout_s=0.0) is None
        assert driver.next_event(timeout_s=-1e-18) is None  # what is left of a deadline may be rounded below 0
        assert driver.next_event(timeout_s=1e9) is not None

    def test_an_event_at_the_very_timeout_counts(self, tmp_path: Path) -> None:
        one, other = scene(tmp_path).driver(), scene(tmp_path).driver()
        for driver in (one, other):
            driver.submit(0, small_task(0))
        at_s = ended(one).at_s
        event = other.next_event(timeout_s=at_s)
        assert event is not None
        assert event.at_s == at_s

    def test_a_client_is_never_given_two_tasks(self, tmp_path: Path) -> None:
        driver = scene(tmp_path).driver()
        assert driver.clients().tolist() == [0, 1, 2]
        driver.submit(1, small_task(1))
        assert driver.clients().tolist() == [0, 2]
        with pytest.raises(AssertionError, match="client 1 has a task already"):
            driver.submit(1, small_task(1))
        ended(driver)
        assert driver.clients().tolist() == [0, 1, 2]

    def test_only_who_is_online_can_be_given_one(self, tmp_path: Path) -> None:
        file = tmp_path / "online.csv"
        file.write_text("client,start_s,end_s\na,0,10\nb,5,20\nc,0,5\n")
        online = make_availability(AvailabilitySpec(kind="file", file=file), 0)
        made = scene(tmp_path, small_fleet(availability=online))
        assert made.driver().clients().tolist() == [0, 2]
        assert made.driver(now_s=7.0).clients().tolist() == [0, 1]


class TestDuration:
    @pytest.mark.parametrize("client", [0, 1, 2])
    @pytest.mark.parametrize(("down", "up"), [(Pipeline(), Pipeline()), (EIGHT_BITS, SQUEEZED)])
    def test_is_download_steps_and_upload_of_exactly_so_many_bytes(
        self, client: int, down: Pipeline, up: Pipeline, tmp_path: Path
    ) -> None:
        fleet = small_fleet(devices=("laptop", "raspberry-pi-4", "laptop"), slowness=(1.0, 2.5, 1.0))
        made, task = scene(tmp_path, fleet, down=down, up=up), small_task(client)
        driver = made.driver(now_s=3.0)
        driver.submit(client, task)
        event, update = completed(driver)
        device = fleet.tiers[client].device
        steps_s = [5, 3, 1][client] * made.book.program(device.name, None).step_time_s * [1.0, 2.5, 1.0][client]
        down_bytes, up_bytes = made.traffic.expected_bytes(task.weights)
        assert (event.cost.bytes_down, event.cost.bytes_up) == (down_bytes, up_bytes)
        expected_s = down_bytes / device.downlink_bytes_per_s + steps_s + up_bytes / device.uplink_bytes_per_s
        assert event.duration_s == pytest.approx(expected_s, rel=1e-9)
        assert event.at_s == pytest.approx(3.0 + expected_s, rel=1e-12)
        assert event.cost.compute_s == pytest.approx(steps_s, rel=1e-9)
        assert event.cost.energy_j == pytest.approx(device.energy_j(steps_s, up_bytes, down_bytes), rel=1e-9)
        assert (update.steps, event.cost.violations, event.cost.switches) == ([5, 3, 1][client], 0, 0)
        assert event.budget_bytes == made.book.eager_peak_bytes
        assert event.planned_peak_bytes == update.measured_peak_bytes

    def test_lossy_links_take_fewer_bytes_and_lose_something(self, tmp_path: Path) -> None:
        updates = []
        for down, up in ((Pipeline(), Pipeline()), (EIGHT_BITS, SQUEEZED)):
            driver = scene(tmp_path, down=down, up=up).driver()
            driver.submit(0, small_task(0))
            updates.append(completed(driver))
        (plain, whole), (squeezed, lossy) = updates
        assert squeezed.cost.bytes_up < 0.1 * plain.cost.bytes_up
        assert squeezed.cost.bytes_down < 0.3 * plain.cost.bytes_down
        assert whole.weights.keys() == lossy.weights.keys()
        assert not same_tensors(whole.weights, lossy.weights)

    def test_masks_and_missing_tensors_save_bytes(self, tmp_path: Path) -> None:
        driver = scene(tmp_path, method=Keeping()).driver()
        driver.submit(0, small_task(0))
        event, update = completed(driver)
        masked = next(iter(update.masks))
        sent = sum(t.numel() * t.element_size() for name, t in update.weights.items() if name != masked)
        sent += int(update.masks[masked].sum()) * 4
        assert sent < event.cost.bytes_up < total_bytes(update.weights)


class TestWhatFails:
    def test_step_that_does_not_fit_fails_after_the_download(self, tmp_path: Path) -> None:
        whole = shop().plain.needed_bytes(None)
        made, task = scene(tmp_path, small_fleet((whole - 1, whole, whole))), small_task(0)
        driver = made.driver()
        driver.submit(0, task)
        event, failure = failed(driver)
        assert (failure.kind, failure.ran) == ("out_of_memory", None)
        assert f"{whole:,}" in failure.detail
        assert event.duration_s == total_bytes(task.weights) / made.fleet.tiers[0].device.downlink_bytes_per_s
        assert (event.cost.bytes_up, event.cost.compute_s, event.planned_peak_bytes) == (0, 0.0, None)
        driver.submit(1, small_task(1))
        completed(driver)

    def test_plan_larger_than_the_budget_is_a_failure(self, tmp_path: Path) -> None:
        book = shop().ladder
        name = book.choose("laptop", book.eager_peak_bytes)
        driver = scene(tmp_path, small_fleet([book.needed_bytes(name) - 1] * 3), ladder=True).driver()
        driver.submit(0, small_task(0, plan=name))
        _, failure = failed(driver)
        assert (failure.kind, str(name) in failure.detail) == ("out_of_memory", True)

    @pytest.mark.parametrize(("samples", "last_batch"), [(0, "wrap"), (7, "drop")])
    def test_too_little_data_is_a_failure(self, samples: int, last_batch: str, tmp_path: Path) -> None:
        shards = DealtShards.of([np.arange(samples), SHARDS[1], SHARDS[2]])
        driver = scene(tmp_path, shards=shards).driver()
        driver.submit(0, small_task(0, work=dataclasses.replace(WORK, last_batch=last_batch)))
        assert failed(driver)[1].kind == "no_data"

    def test_diverged_training_is_a_failure_and_the_next_task_is_not(self, tmp_path: Path) -> None:
        driver = scene(tmp_path).driver()
        with one_thread():
            driver.submit(0, small_task(0, work=dataclasses.replace(WORK, lr=1e20, epochs=3)))
            bad, failure = failed(driver)
            driver.submit(1, small_task(1))
            completed(driver)
        assert failure.kind == "non_finite"
        assert failure.ran is not None  # its peak and its upload count
        assert failure.ran.steps == 15
        assert bad.planned_peak_bytes == failure.ran.measured_peak_bytes
        assert bad.cost.bytes_up == total_bytes(small_task(0).weights)


class TestStates:
    """A driver hands out what clients have kept and brings what they would keep; whether that counts, others decide."""

    def test_go_from_task_to_task(self, tmp_path: Path) -> None:
        made = scene(tmp_path, method=Keeping())
        driver = made.driver()
        for count in (1, 2, 3):
            driver.submit(0, small_task(0))
            _, update = completed(driver)
            assert update.state is not None
            assert int(update.state["count"]) == count
            made.states[0] = update.state
        assert made.states[1] == {}

    @pytest.mark.parametrize("kind", ["crash", "disconnected", "corrupt", "non_finite", "time_out"])
    def test_are_as_before_where_no_update_arrived(self, kind: str, tmp_path: Path) -> None:
        made = scene(tmp_path, method=Keeping(), faults=Faults(**{kind: 1.0}), up=SQUEEZED)
        driver = made.driver()
        made.states[0] = before = {"count": torch.tensor(5)}
        driver.submit(0, small_task(0))
        assert failed(driver)[1].kind == kind
        assert same_tensors(made.states[0], before)

    def test_are_as_before_where_a_task_is_given_up(self, tmp_path: Path) -> None:
        made = scene(tmp_path, method=Keeping())
        driver = made.driver()
        ticket = driver.submit(0, small_task(0))
        driver.cancel(ticket)
        assert made.states[0] == {}

    def test_hold_what_the_links_lost(self, tmp_path: Path) -> None:
        made = scene(tmp_path, up=SQUEEZED)
        driver = made.driver()
        driver.submit(0, small_task(0))
        first = completed(driver)[1].state
        assert first
        assert all(name.startswith("updates/error/") for name in first)
        made.states[0] = first
        driver.submit(0, small_task(0))
        second = completed(driver)[1].state
        assert second is not None
        assert not same_tensors(first, second)


class TestRestore:
    """Any moment of a run is stored and read again, by parts of their own: the same events follow."""

    def events(self, driver: InProcessDriver) -> list[TaskEvent]:
        found = []
        while (event := driver.next_event()) is not None:
            found.append(event)
        return found

    @pytest.mark.parametrize("ratio", [0.0, 0.1, 0.35, 0.6, 0.93, 0.99])
    def test_identical_events_follow(self, ratio: float, tmp_path: Path) -> None:
        fleet = small_fleet(devices=("laptop", "raspberry-pi-4", "laptop"))
        faults = Faults(disconnected=0.2, corrupt=0.2)
        first = scene(tmp_path, fleet, method=Keeping(), up=SQUEEZED, down=EIGHT_BITS, faults=faults)
        driver = first.driver()
        for client in (0, 1, 2):  # so that there are states
            driver.submit(client, small_task(client, seed=7))
        longest_s = max(event.duration_s for event in self.events(driver))
        newer: Tensors = {name: tensor * 1.5 for name, tensor in shop().weights.items() if tensor.is_floating_point()}
        newer = shop().weights | newer
        for client in (1, 0, 2):
            weights = newer if client == 1 else shop().weights
            driver.submit(client, small_task(client, weights=weights, round_index=int(client == 1), options={"a": [1]}))
        early = []
        until_s = driver.now() + ratio * longest_s
        while (event := driver.next_event(until_s - driver.now())) is not None:
            early.append(event)
        checkpoint = Checkpoint(
            next_round=1,
            now_s=driver.now(),
            wall_time_s=0.0,
            rounds_length_bytes=0,
            clients_length_bytes=0,
            policy={},
            server=ServerState(weights=newer),
            next_ticket=driver.next_ticket,
            pending=tuple(driver.pending()),
            client_states=first.states.write(),
        )
        write_checkpoint(tmp_path / "checkpoint", checkpoint)
        expected = [told(event) for event in self.events(driver)]
        assert len(early) + len(expected) == 3

        stored = read_checkpoint(tmp_path / "checkpoint")
        second = scene(tmp_path, fleet, method=Keeping(), up=SQUEEZED, down=EIGHT_BITS, faults=faults)
        second = dataclasses.replace(second, states=ClientStates(tmp_path / "states", stored.client_states))
        again = second.driver(now_s=stored.now_s)
        again.restore(stored.pending, stored.next_ticket)
        assert again.busy == {each.task.client for each in checkpoint.pending}
        assert [told(event) for event in self.events(again)] == expected
        assert again.next_ticket == 6
        for client in (0, 1, 2):
            assert same_tensors(first.states[client], second.states[client])
