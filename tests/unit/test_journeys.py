"""What befalls a task: the exact moment of every fault, time-outs, devices that go away, tasks that are given up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.federation_parts import SHARDS, shop
from tests.scene_parts import Scene, moving_memory, same_tensors, scene, small_fleet, small_task

from fedhybrid.data import DealtShards
from fedhybrid.engine.driver import InProcessDriver
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.engine.faults import Faults
from fedhybrid.fleet import AvailabilitySpec, make_availability
from fedhybrid.graph import allocator_events, peak_of
from fedhybrid.records import ClientTask, Failure, TaskEvent, Update
from fedhybrid.tree import total_bytes

TASK_BYTES = total_bytes(shop().weights)


@dataclasses.dataclass(frozen=True)
class Times:
    """When the stages of a task end that begins at 0 and to which nothing happens."""

    downloaded_s: float
    computed_s: float
    arrived_s: float

    def within(self, stage: str, ratio: float) -> float:
        """A moment of a stage."""
        stages = {
            "download": (0.0, self.downloaded_s),
            "compute": (self.downloaded_s, self.computed_s),
            "upload": (self.computed_s, self.arrived_s),
        }
        start_s, end_s = stages[stage]
        return start_s + ratio * (end_s - start_s)


def times_of(made: Scene, client: int = 0) -> Times:
    device = made.fleet.tiers[client].device
    down_s = TASK_BYTES / device.downlink_bytes_per_s
    computed_s = down_s + [5, 3, 1][client] * made.book.program(device.name, None).step_time_s
    return Times(
        downloaded_s=down_s, computed_s=computed_s, arrived_s=computed_s + TASK_BYTES / device.uplink_bytes_per_s
    )


def outcome(made: Scene, task: ClientTask | None = None) -> tuple[TaskEvent, Update | Failure]:
    driver = made.driver()
    task = task or small_task(0)
    driver.submit(task.client, task)
    event = driver.next_event()
    assert event is not None
    assert driver.next_event() is None
    return event, event.result


def failure(made: Scene, task: ClientTask | None = None) -> tuple[TaskEvent, Failure]:
    event, result = outcome(made, task)
    assert isinstance(result, Failure), result
    return event, result


class TestFaults:
    def moment_ratio(self, kind: str) -> float:
        fault = Faults(**{kind: 1.0}).of(small_task(0), 0.0)
        assert fault is not None
        assert 0.05 < fault.at_ratio < 0.95
        return fault.at_ratio

    @pytest.mark.parametrize("kind", ["crash", "out_of_memory"])
    def test_while_it_computes(self, kind: str, tmp_path: Path) -> None:
        made, ratio = scene(tmp_path, faults=Faults(**{kind: 1.0})), self.moment_ratio(kind)
        event, failed = failure(made)
        assert (failed.kind, failed.ran) == (kind, None)
        assert f"{ratio:.0%}" in failed.detail
        times = times_of(made)
        assert event.at_s == pytest.approx(times.within("compute", ratio), rel=1e-12)
        assert event.cost.compute_s == pytest.approx(ratio * (times.computed_s - times.downloaded_s), rel=1e-9)
        assert (event.cost.bytes_down, event.cost.bytes_up, event.planned_peak_bytes) == (TASK_BYTES, 0, None)

    def test_during_the_upload(self, tmp_path: Path) -> None:
        made, ratio = scene(tmp_path, faults=Faults(disconnected=1.0)), self.moment_ratio("disconnected")
        event, failed = failure(made)
        assert (failed.kind, failed.ran) == ("disconnected", None)
        assert event.at_s == pytest.approx(times_of(made).within("upload", ratio), rel=1e-12)
        assert event.cost.bytes_up == pytest.approx(ratio * TASK_BYTES, abs=1.01)

    @pytest.mark.parametrize(("timeout_s", "expected"), [(None, 3.0), (77.0, None)])
    def test_silence_lasts_until_the_time_out(
        self, timeout_s: float | None, expected: float | None, tmp_path: Path
    ) -> None:
        made = scene(tmp_path, faults=Faults(time_out=1.0), timeout_s=timeout_s)
        event, failed = failure(made)
        assert failed.kind == "time_out"
        assert event.at_s == pytest.approx(expected * times_of(made).computed_s if expected else timeout_s, rel=1e-12)
        assert event.cost.bytes_up == 0

    @pytest.mark.parametrize("kind", ["corrupt", "non_finite"])
    def test_damage_is_found_when_it_has_arrived(self, kind: str, tmp_path: Path) -> None:
        made = scene(tmp_path, faults=Faults(**{kind: 1.0}))
        event, failed = failure(made)
        assert failed.kind == kind
        assert event.at_s == pytest.approx(times_of(made).arrived_s, rel=1e-12)
        assert event.cost.bytes_up == TASK_BYTES
        assert failed.ran is not None
        assert failed.ran.steps == 5
        assert event.planned_peak_bytes == failed.ran.measured_peak_bytes

    @pytest.mark.parametrize("kind", ["crash", "disconnected", "out_of_memory", "time_out"])
    @pytest.mark.parametrize("task_kind", ["evaluate", "query"])
    def test_happen_to_every_kind_of_task(self, kind: str, task_kind: str, tmp_path: Path) -> None:
        made = scene(tmp_path, faults=Faults(**{kind: 1.0}))
        event, failed = failure(made, small_task(0, kind=task_kind))
        assert failed.kind == kind
        assert event.cost.bytes_up == 0
        if kind != "time_out":
            assert event.at_s <= times_of(made).computed_s

    def test_whichever_comes_first(self, tmp_path: Path) -> None:
        early_s = times_of(scene(tmp_path)).within("compute", 0.01)
        made = scene(tmp_path, faults=Faults(crash=1.0), timeout_s=early_s)
        event, failed = failure(made)
        assert (failed.kind, event.at_s) == ("time_out", early_s)


STAGES = [("download", 0.5), ("compute", 0.3), ("upload", 0.25), ("upload", 0.75)]


class TestCutOff:
    def expect(self, made: Scene, stage: str, ratio: float, kind: str) -> None:
        event, failed = failure(made)
        times = times_of(made)
        assert failed.kind == kind
        assert event.at_s == pytest.approx(times.within(stage, ratio), abs=1e-6)  # availability knows microseconds
        sent_ratio = ratio if stage == "upload" else 0.0
        assert event.cost.bytes_up == pytest.approx(sent_ratio * TASK_BYTES, abs=6)
        computed = {"download": 0.0, "compute": ratio, "upload": 1.0}[stage]
        whole_s = times.computed_s - times.downloaded_s
        assert event.cost.compute_s == pytest.approx(computed * whole_s, abs=1.1e-6)
        received_ratio = ratio if stage == "download" else 1.0
        assert event.cost.bytes_down == pytest.approx(received_ratio * TASK_BYTES, abs=6)

    @pytest.mark.parametrize(("stage", "ratio"), STAGES)
    def test_by_the_time_out(self, stage: str, ratio: float, tmp_path: Path) -> None:
        timeout_s = times_of(scene(tmp_path)).within(stage, ratio)
        self.expect(scene(tmp_path, timeout_s=timeout_s), stage, ratio, "time_out")

    @pytest.mark.parametrize(("stage", "ratio"), STAGES)
    def test_by_going_offline(self, stage: str, ratio: float, tmp_path: Path) -> None:
        file = tmp_path / "online.csv"
        file.write_text(f"client,start_s,end_s\na,0,{times_of(scene(tmp_path)).within(stage, ratio):.9f}\nb,0,99\n")
        online = make_availability(AvailabilitySpec(kind="file", file=file), 0)
        self.expect(scene(tmp_path, small_fleet(availability=online)), stage, ratio, "disconnected")

    def test_not_where_it_arrives_in_time(self, tmp_path: Path) -> None:
        timeout_s = times_of(scene(tmp_path)).arrived_s * (1 + 1e-9)
        _, result = outcome(scene(tmp_path, timeout_s=timeout_s))
        assert isinstance(result, Update)

    def test_before_it_could_refuse(self, tmp_path: Path) -> None:
        timeout_s = times_of(scene(tmp_path)).within("download", 0.5)
        event, failed = failure(scene(tmp_path, small_fleet((1, 1, 1)), timeout_s=timeout_s))
        assert (failed.kind, event.at_s) == ("time_out", timeout_s)

    def test_a_lost_upload_has_sent_what_it_has(self, tmp_path: Path) -> None:
        timeout_s = times_of(scene(tmp_path)).within("upload", 0.02)
        event, failed = failure(scene(tmp_path, faults=Faults(disconnected=1.0), timeout_s=timeout_s))
        assert failed.kind == "time_out"
        assert event.cost.bytes_up == pytest.approx(0.02 * TASK_BYTES, abs=1.01)


class TestGivenUp:
    def given_up(self, made: Scene, at_s: float) -> tuple[InProcessDriver, TaskEvent]:
        driver = made.driver()
        ticket = driver.submit(0, small_task(0))
        assert driver.next_event(at_s) is None
        event = driver.cancel(ticket)
        assert isinstance(event.result, Failure)
        assert (event.result.kind, event.ticket, event.at_s, event.duration_s) == ("late", ticket, at_s, at_s)
        return driver, event

    @pytest.mark.parametrize(("stage", "ratio"), STAGES)
    def test_at_every_stage(self, stage: str, ratio: float, tmp_path: Path) -> None:
        made = scene(tmp_path)
        times = times_of(made)
        driver, event = self.given_up(made, times.within(stage, ratio))
        sent = ratio * TASK_BYTES if stage == "upload" else 0
        assert event.cost.bytes_up == pytest.approx(sent, abs=1.01)
        assert event.cost.bytes_down == pytest.approx(
            ratio * TASK_BYTES if stage == "download" else TASK_BYTES, abs=1.01
        )
        computed = {"download": 0.0, "compute": ratio, "upload": 1.0}[stage]
        assert event.cost.compute_s == pytest.approx(computed * (times.computed_s - times.downloaded_s), abs=1e-12)
        assert driver.busy == frozenset()
        assert driver.next_event() is None  # nothing comes of it later

    @pytest.mark.parametrize(("stage", "ratio"), [*STAGES[:2], ("upload", 0.01)])
    def test_one_that_would_have_been_lost(self, stage: str, ratio: float, tmp_path: Path) -> None:
        made = scene(tmp_path, faults=Faults(disconnected=1.0))
        _, event = self.given_up(made, times_of(made).within(stage, ratio))
        assert event.cost.bytes_up == pytest.approx(ratio * TASK_BYTES if stage == "upload" else 0, abs=1.01)

    def test_its_client_is_free_and_others_are_not_disturbed(self, tmp_path: Path) -> None:
        made = scene(tmp_path)
        driver = made.driver()
        tickets = [driver.submit(client, small_task(client)) for client in (0, 1)]
        driver.cancel(tickets[0])
        again = driver.submit(0, small_task(0))
        events = [driver.next_event() for _ in range(2)]
        assert sorted(event.ticket for event in events if event) == [tickets[1], again]
        assert driver.next_event() is None


class TestMovingMemory:
    def test_falls_are_followed_and_counted(self, tmp_path: Path) -> None:
        book = shop().ladder
        whole, small = book.eager_peak_bytes, book.smallest_bytes
        step_s = book.program("laptop", None).step_time_s
        rows = [[whole] * 10 + [small] * 200]  # it falls within the third step
        period_s = (TASK_BYTES / small_fleet().tiers[0].device.downlink_bytes_per_s + 2.5 * step_s) / 10
        memory = moving_memory(rows, period_s, promised=[whole])
        made = scene(tmp_path, small_fleet(memory=memory), ladder=True)
        plan = book.choose("laptop", whole)
        event, result = outcome(made, small_task(0, plan=plan))
        assert isinstance(result, Update)
        assert (result.steps, event.cost.violations, event.cost.switches) == (5, 1, 1)
        assert event.planned_peak_bytes == result.measured_peak_bytes == book.needed_bytes(plan)
        slow_s = book.program("laptop", book.choose("laptop", small)).step_time_s
        assert event.cost.compute_s == pytest.approx(3 * step_s + 2 * slow_s, rel=1e-9)
        assert event.budget_bytes == whole

    def test_other_plans_of_one_task_learn_the_same(self, tmp_path: Path) -> None:
        book = shop().ladder
        whole = book.eager_peak_bytes
        step_s = book.program("laptop", None).step_time_s
        memory = moving_memory([[whole, 920_000, book.keep_all_bytes]], 1.3 * step_s, promised=[whole])
        assert book.program("laptop", book.choose("laptop", 920_000)).bit_identical
        plan = book.choose("laptop", whole)
        moving = outcome(scene(tmp_path, small_fleet(memory=memory), ladder=True), small_task(0, plan=plan))
        still = outcome(scene(tmp_path, ladder=True), small_task(0, plan=plan))
        assert moving[0].cost.switches > 1
        assert isinstance(moving[1], Update)
        assert isinstance(still[1], Update)
        assert same_tensors(moving[1].weights, still[1].weights)

    def test_a_fall_that_no_plan_survives_is_out_of_memory(self, tmp_path: Path) -> None:
        book = shop().ladder
        whole = book.eager_peak_bytes
        memory = moving_memory([[whole] * 10 + [book.smallest_bytes - 1] * 999], 6e-4, promised=[whole])
        made = scene(tmp_path, small_fleet(memory=memory), ladder=True)
        event, failed = failure(made, small_task(0, plan=book.choose("laptop", whole)))
        assert (failed.kind, failed.ran) == ("out_of_memory", None)
        assert f"{book.smallest_bytes:,}" in failed.detail
        assert event.cost.compute_s < 5 * book.program("laptop", None).step_time_s
        assert event.cost.bytes_up == 0


class TestOtherTasks:
    def test_a_query_tells_what_the_client_has(self, tmp_path: Path) -> None:
        made = scene(tmp_path)
        event, result = outcome(made, small_task(1, kind="query", weights={}))
        assert isinstance(result, Update)
        assert (result.kind, result.num_samples, result.steps) == ("query", 19, 0)
        device = made.fleet.tiers[1].device
        assert result.metrics == {
            "budget_bytes": made.book.eager_peak_bytes,
            "kernel_s": made.book.kernel_s(device.name),
        }
        assert (event.cost.bytes_down, event.cost.bytes_up, event.cost.compute_s) == (0, 16, 0.0)
        assert event.duration_s == 16 / device.uplink_bytes_per_s

    @pytest.mark.parametrize("power", [0, 2, 5, 8])
    def test_evaluation_takes_the_largest_batch_within_the_budget(self, power: int, tmp_path: Path) -> None:
        sizes = shop().bench.sizes
        budget = sizes.peak_bytes(2**power) + 100
        made = scene(tmp_path, small_fleet((budget, budget, budget)))
        event, result = outcome(made, small_task(0, kind="evaluate"))
        assert isinstance(result, Update)
        assert sizes.largest(budget) == 2**power
        assert result.measured_peak_bytes <= budget
        assert (result.samples_seen, result.steps, result.weights) == (40, 0, {})
        correct, losses = self.reference()
        assert result.metrics == {"accuracy": int(correct.sum()) / 40}
        assert result.loss_mean == pytest.approx(float(losses.mean()), rel=1e-5)
        assert result.squared_loss_sum == pytest.approx(float(losses.square().sum()), rel=1e-5)
        assert event.cost.bytes_up == 8
        third_s = 5 * made.book.program("laptop", None).step_time_s / 3
        assert event.cost.compute_s == pytest.approx(third_s, rel=1e-9)

    def reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        evaluator = Evaluator(shop().bench.model, shop().bench.split)
        evaluator.load(shop().weights)
        return evaluator.answers(torch.from_numpy(SHARDS[0]), 40)

    def test_evaluation_really_stays_inside_its_budget(self, tmp_path: Path) -> None:
        """Counted by the allocator over the whole task, not only over one batch."""
        budget = shop().bench.sizes.peak_bytes(2) + 100
        made = scene(tmp_path, small_fleet((budget, budget, budget)))
        outcome(made, small_task(0, kind="evaluate"))  # sizes are known now
        with allocator_events() as events:
            outcome(made, small_task(0, kind="evaluate"))
        assert TASK_BYTES + peak_of(events) <= budget

    def test_too_small_a_budget_is_out_of_memory(self, tmp_path: Path) -> None:
        budget = shop().bench.sizes.peak_bytes(1) - 1
        event, failed = failure(scene(tmp_path, small_fleet((budget,) * 3)), small_task(0, kind="evaluate"))
        assert failed.kind == "out_of_memory"
        assert f"{budget:,}" in failed.detail
        assert f"{budget + 1:,}" in failed.detail
        assert event.cost.compute_s == 0

    def test_evaluation_without_samples(self, tmp_path: Path) -> None:
        shards = DealtShards.of([SHARDS[0][:0], SHARDS[1], SHARDS[2]])
        assert failure(scene(tmp_path, shards=shards), small_task(0, kind="evaluate"))[1].kind == "no_data"

    def test_evaluation_of_a_broken_model_is_a_failure(self, tmp_path: Path) -> None:
        broken = {n: torch.full_like(t, 1e30) if t.is_floating_point() else t for n, t in shop().weights.items()}
        assert failure(scene(tmp_path), small_task(0, kind="evaluate", weights=broken))[1].kind == "non_finite"
