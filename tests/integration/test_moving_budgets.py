"""Memory that other apps take and give back while tasks run, and devices that come and go: judged by the traces."""

from __future__ import annotations

import copy
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.run_parts import (
    Stop,
    Stopper,
    assert_books_balance,
    assert_same_run,
    asynchronous,
    model_of,
    slow_device,
    small,
    start_s,
    trained,
    world_of,
)

import fedhybrid as fh
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.engine.world import World
from fedhybrid.experiment import RunResult
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.records import ClientRecord
from fedhybrid.tree import load_into, tensors_of

# Of the small network's step: with splits, with recomputing alone, without a plan; checked where they are used.
SMALLEST_BYTES, EXACT_BYTES, WHOLE_BYTES = 845_748, 912_084, 1_027_040
_RESTLESS = {
    "window_s": 60.0,
    "predictor": "last-value",
    "trace": {
        "duration_s": 6000.0, "period_s": 4.0, "stay_s": 10.0, "apps_per_h": 500.0, "app_ratio": 0.02,
        "user_spread": 0.3,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two kinds of device whose steps take about 5 and 16 seconds."""
    folder = tmp_path_factory.mktemp("devices")
    return [
        {"name": "slow", "budget": "150%", "device": slow_device(folder, "slow", times=1e4), "speed_spread": 0.2},
        {"name": "slower", "budget": "190%", "device": slow_device(folder, "slower", times=3e4)},
    ]


def restless(tiers: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A fleet on which memory falls and rises several times during a task."""
    fleet = {"clients_per_round": 6, "tiers": tiers, "memory": copy.deepcopy(_RESTLESS)}
    return small(**{"rounds": 6, "fleet": fleet, "evaluation": {"every": 6}, **changes})


@pytest.fixture(scope="module")
def planned(tiers: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return fh.run(restless(tiers), out=tmp_path_factory.mktemp("planned") / "run")


@pytest.fixture(scope="module")
def unplanned(tiers: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return fh.run(restless(tiers, method="fedavg"), out=tmp_path_factory.mktemp("unplanned") / "run")


@dataclass(frozen=True)
class Replayed:
    """A task step by step, without looking ahead: what it should have come to."""

    outcome: str
    end_s: float
    violations: int
    switches: int
    least_left_bytes: int


def replayed(world: World, task: ClientRecord) -> Replayed:
    """One step after the other: look at the memory, take the plan for it, go on by its time."""
    memory, book, device = world.job.fleet.memory, world.book, world.device(task.client)
    assert memory is not None
    most_bytes = int(world.budgets.most[task.client])
    begun_s = start_s(task)
    now_s = begun_s + task.bytes_down / device.downlink_bytes_per_s
    promised_bytes = world.budgets.promised_one(task.client, begun_s)
    assert task.budget_bytes == promised_bytes
    running = book.choose(device.name, promised_bytes)
    if book.needed_bytes(running) > promised_bytes:
        return Replayed("out_of_memory", now_s, 0, 0, promised_bytes)
    violations = switches = 0
    samples = world.num_samples(task.client)
    for _ in range(-(-samples // world.job.work.batch_size) * world.job.work.epochs):
        left_bytes = memory.left_bytes(task.client, now_s, budget_bytes=most_bytes)
        chosen = book.choose(device.name, min(left_bytes, promised_bytes))
        if book.needed_bytes(chosen) > min(left_bytes, promised_bytes):
            return Replayed("out_of_memory", now_s, violations, switches, left_bytes)
        switches += chosen != running
        running = chosen
        program = book.program(device.name, running)
        end_s = now_s + program.step_time_s * world.budgets.speed_factor(task.client)
        sample = int(now_s // memory.period_s) + 1
        falls = []
        while sample * memory.period_s < end_s:
            at_s = sample * memory.period_s
            falls.append(memory.left_bytes(task.client, at_s, budget_bytes=most_bytes) < book.needed_bytes(running))
            sample += 1
        violations += any(falls)
        now_s = end_s
    return Replayed("completed", now_s + task.bytes_up / device.uplink_bytes_per_s, violations, switches, most_bytes)


@pytest.mark.parametrize("which", ["planned", "unplanned"])
def test_every_task_went_as_its_trace_says(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: RunResult = request.getfixturevalue(which)
    shutil.copytree(run.folder, tmp_path / "copy")
    world = world_of(run.config, tmp_path / "copy")
    for task in run.clients:
        expected = replayed(world, task)
        found = (task.outcome, task.violations, task.switches)
        assert found == (expected.outcome, expected.violations, expected.switches), task
        assert task.at_s == pytest.approx(expected.end_s)
    assert {path.name for path in (tmp_path / "copy/plans").iterdir()} == {
        path.name for path in (run.folder / "plans").iterdir()
    }


class TestLadder:
    def test_clients_move_along_it(self, planned: RunResult) -> None:
        assert sum(task.switches for task in planned.clients) > 5
        assert any(task.switches > 1 for task in planned.clients if task.outcome == "completed")

    def test_violations_are_counted(self, planned: RunResult) -> None:
        assert planned.summary is not None
        assert planned.summary.violations == sum(record.violations for record in planned.rounds) > 0
        assert_books_balance(planned)

    def test_nobody_takes_more_than_promised(self, planned: RunResult) -> None:
        assert planned.summary is not None
        assert planned.summary.budget_violations == 0
        done = [task for task in planned.clients if task.outcome == "completed"]
        assert len(done) > 20
        for task in done:
            assert task.measured_peak_bytes is not None
            assert task.measured_peak_bytes == task.planned_peak_bytes
            assert task.measured_peak_bytes <= task.budget_bytes

    def test_no_task_is_lost_to_a_fall_that_some_plan_can_hold(self, planned: RunResult, tmp_path: Path) -> None:
        """Every task that is lost had, before some step, less than the smallest plan of all needs."""
        shutil.copytree(planned.folder, tmp_path / "copy")
        world = world_of(planned.config, tmp_path / "copy")
        peaks = [json.loads(path.read_text())["peak_bytes"] for path in (planned.folder / "plans").iterdir()]
        lost = [task for task in planned.clients if task.outcome == "out_of_memory"]
        assert min(peaks) == SMALLEST_BYTES
        assert any("step" in task.detail for task in lost)
        for task in lost:
            assert replayed(world, task).least_left_bytes < min(peaks)

    def test_without_plans_more_tasks_are_lost(self, planned: RunResult, unplanned: RunResult) -> None:
        assert planned.summary is not None
        assert unplanned.summary is not None
        assert planned.summary.failures.keys() == unplanned.summary.failures.keys() == {"out_of_memory"}
        assert unplanned.summary.failures["out_of_memory"] > 2 * planned.summary.failures["out_of_memory"]
        assert unplanned.summary.eager_peak_bytes == WHOLE_BYTES
        assert all(task.switches == 0 for task in unplanned.clients)

    def test_a_stop_changes_nothing(self, tiers: list[dict[str, Any]], tmp_path: Path) -> None:
        for name, raw in (("sync", restless(tiers)), ("async", self.asynchronous(tiers))):
            fh.run(raw, out=tmp_path / name / "whole")
            out, every = tmp_path / name / "run", {"checkpoint_every": 1}
            for at_round in (0, 2):
                with pytest.raises(Stop):
                    fh.run(raw | every, out=out, resume=at_round > 0, progress=Stopper(at_round=at_round))
            fh.run(raw | every | {"workers": 2}, out=out, resume=True)
            assert_same_run(tmp_path / name / "whole", out)

    @staticmethod
    def asynchronous(tiers: list[dict[str, Any]]) -> dict[str, Any]:
        fleet = {"clients_per_round": 6, "tiers": tiers, "memory": copy.deepcopy(_RESTLESS)}
        return asynchronous(rounds=10, fleet=fleet, schedule={"kind": "asynchronous", "in_flight": 6})


def falls(folder: Path, lowest_bytes: int) -> dict[str, Any]:
    """Memory by a file in which it falls and rises every few steps, but never below `lowest_bytes`."""
    path, rng = folder / "falls.csv", random.Random(3)
    lines = ["client,time_s,available"]
    for client in range(5):
        at_s = 0.0
        while at_s < 3000:
            lines.append(f"{client},{at_s:.1f},{rng.randint(lowest_bytes, int(1.2 * WHOLE_BYTES))}")
            at_s += rng.uniform(3, 60)
    path.write_text("\n".join(lines) + "\n")
    return {"file": str(path), "scale": "bytes", "predictor": "last-value", "window_s": 20.0}


class TestFallsThatSomePlanCanHold:
    def test_no_task_is_lost_and_no_bit_is_changed(self, tiers: list[dict[str, Any]], tmp_path: Path) -> None:
        """With plans that only recompute, which is exact: whichever ran when, the model is that of ample devices."""
        fleet = {"clients_per_round": 6, "tiers": tiers, "memory": falls(tmp_path, EXACT_BYTES)}
        exact = small(rounds=4, fleet=fleet, planner={"actions": ["recompute"]})
        ladder = fh.run(exact, out=tmp_path / "ladder")
        without = fh.run(exact | {"method": "fedavg"}, out=tmp_path / "without")
        assert {task.outcome for task in ladder.clients} == {"completed"}
        assert sum(task.switches for task in ladder.clients) > 5
        assert len({task.planned_peak_bytes for task in ladder.clients}) > 1
        assert min(task.planned_peak_bytes or 0 for task in ladder.clients) == EXACT_BYTES
        assert {task.outcome for task in without.clients} == {"completed", "out_of_memory"}
        assert [r.cohort for r in ladder.rounds] == [r.cohort for r in without.rounds]
        ample = {"clients_per_round": 6, "tiers": tiers}
        fh.run(exact | {"method": "fedavg", "fleet": ample}, out=tmp_path / "ample")
        models = {name: model_of(tmp_path / name) for name in ("ladder", "ample", "without")}
        assert models["ladder"] == models["ample"]
        assert models["ladder"] != models["without"]

    @pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
    def test_nor_with_splits_which_need_less(self, kind: str, tiers: list[dict[str, Any]], tmp_path: Path) -> None:
        fleet = {"clients_per_round": 6, "tiers": tiers, "memory": falls(tmp_path, SMALLEST_BYTES)}
        raw = small(rounds=4, fleet=fleet) if kind == "synchronous" else asynchronous("fedbuff", rounds=6, fleet=fleet)
        result = fh.run(raw, out=tmp_path / "run")
        assert {task.outcome for task in result.clients} == {"completed"}
        assert sum(task.switches for task in result.clients) > 5
        assert_books_balance(result)


class TestEvaluationOnDevices:
    """Each device tests the model in batches that its memory holds, and the answers do not depend on them."""

    @pytest.fixture
    def result(self, tmp_path: Path) -> RunResult:
        tiers = [
            {"name": "tiny", "budget": "4%", "device": "raspberry-pi-4"},
            {"name": "low", "budget": "12%", "device": "raspberry-pi-4"},
            {"name": "ample", "budget": "100%", "device": "laptop"},
        ]
        fleet = {"clients_per_round": 6, "tiers": tiers}
        raw = small(rounds=3, fleet=fleet, evaluation={"every": 3, "clients": 20}, train={"batch_size": 8, "lr": 0.05})
        return fh.run(raw, out=tmp_path / "run")

    def test_obeys_budgets(self, result: RunResult) -> None:
        tasks = [task for task in result.clients if task.kind == "evaluate"]
        assert len(tasks) == 20
        assert {task.round for task in tasks} == {2}
        job = build_federation(load_config(result.config))
        evaluator = Evaluator(job.model, job.dataset.train)
        evaluator.peak_bytes(1)
        least_bytes = evaluator.peak_bytes(1)
        peaks = set()
        for task in tasks:
            assert task.outcome == ("completed" if task.budget_bytes >= least_bytes else "out_of_memory")
            if task.outcome == "completed":
                assert task.measured_peak_bytes is not None
                assert task.measured_peak_bytes <= task.budget_bytes
                peaks.add(task.measured_peak_bytes)
        assert {task.outcome for task in tasks} == {"completed", "out_of_memory"}
        assert len(peaks) == 2
        assert all(f"needs {least_bytes:,} bytes" in task.detail for task in tasks if task.outcome != "completed")

    def test_counts_right_answers(self, result: RunResult) -> None:
        job = build_federation(load_config(result.config))
        load_into(tensors_of(job.model), load_file(result.folder / "model.safetensors"))
        accuracies = []
        for task in result.clients:
            if task.kind != "evaluate" or task.outcome != "completed":
                continue
            x, y = job.dataset.train.batch(torch.from_numpy(job.shards[task.client]))
            with torch.no_grad():
                right = (job.model.eval()(x).argmax(dim=1) == y).sum()
            assert task.accuracy == pytest.approx(int(right) / len(y))
            assert (task.samples, task.steps, task.staleness) == (len(y), 0, 0)
            accuracies.append(task.accuracy)
        assert result.rounds[-1].client_accuracy == pytest.approx(sum(accuracies) / len(accuracies))

    def test_costs_are_counted_apart_from_training(self, result: RunResult) -> None:
        assert_books_balance(result)
        last = result.rounds[-1]
        assert len(last.cohort) == last.completed + last.failed == 6
        assert last.virtual_time_s == max(task.at_s for task in result.clients)
        assert max(task.at_s for task in trained(result.clients)) < last.virtual_time_s

    def test_follows_memory_that_moves(self, tiers: list[dict[str, Any]], tmp_path: Path) -> None:
        result = fh.run(restless(tiers, rounds=3, evaluation={"every": 1, "clients": 8}), out=tmp_path / "run")
        tasks = [task for task in result.clients if task.kind == "evaluate" and task.outcome == "completed"]
        assert len(tasks) > 10
        assert len({task.measured_peak_bytes for task in tasks}) > 1
        assert all((task.measured_peak_bytes or 0) <= task.budget_bytes for task in tasks)


class TestAvailability:
    def check(self, result: RunResult) -> None:
        """Nobody is asked while away; whose time online ends during a task is cut off at that very moment."""
        fleet = build_federation(load_config(result.config)).fleet
        for task in result.clients:
            until_s = fleet.online_until_s(task.client, start_s(task))
            assert until_s > start_s(task), f"client {task.client} was away at {start_s(task)}"
            if task.outcome == "disconnected":
                assert task.at_s == pytest.approx(until_s)
            else:
                assert task.outcome in ("completed", "late")
                assert task.at_s <= until_s + 1e-6
        assert {"completed", "disconnected"} <= {task.outcome for task in result.clients}
        assert_books_balance(result)

    def fleet(self, tiers: list[dict[str, Any]], **availability: Any) -> dict[str, Any]:
        ample = [tier | {"budget": "100%"} for tier in tiers]
        return {"clients_per_round": 5, "tiers": ample, "availability": availability}

    @pytest.mark.parametrize("kind", ["duty", "random", "file"])
    def test_in_rounds(self, kind: str, tiers: list[dict[str, Any]], tmp_path: Path) -> None:
        if kind == "duty":
            availability = {"kind": kind, "on_s": 600.0, "off_s": 900.0, "jitter_ratio": 0.3}
        elif kind == "random":
            availability = {"kind": kind, "on_ratio": 0.3, "slot_s": 300.0}
        else:
            path = tmp_path / "online.csv"
            path.write_text("client,start_s,end_s\na,0,300\na,900,1500\nb,100,1400\nc,700,900\n")
            availability = {"kind": kind, "file": str(path)}
        result = fh.run(small(rounds=8, fleet=self.fleet(tiers, **availability)), out=tmp_path / "run")
        self.check(result)
        assert all(record.cohort for record in result.rounds)

    def test_without_rounds(self, tiers: list[dict[str, Any]], tmp_path: Path) -> None:
        fleet = self.fleet(tiers, kind="duty", on_s=600.0, off_s=900.0)
        self.check(fh.run(asynchronous(rounds=12, fleet=fleet), out=tmp_path / "run"))

    def test_a_round_waits_until_somebody_is_there(self, tmp_path: Path) -> None:
        path = tmp_path / "online.csv"
        path.write_text("client,start_s,end_s\n" + "".join(f"{client},1000,2000\n" for client in range(24)))
        fleet = {
            "clients_per_round": 3,
            "tiers": small()["fleet"]["tiers"],
            "availability": {"kind": "file", "file": str(path)},
        }
        result = fh.run(small(rounds=2, fleet=fleet), out=tmp_path / "run")
        assert min(start_s(task) for task in result.clients) == pytest.approx(1000)
        assert {task.outcome for task in result.clients} == {"completed"}

    def test_a_stop_changes_nothing(self, tiers: list[dict[str, Any]], tmp_path: Path) -> None:
        fleet = self.fleet(tiers, kind="random", on_ratio=0.3, slot_s=300.0)
        for name, raw in (("sync", small(rounds=5, fleet=fleet)), ("async", asynchronous(rounds=8, fleet=fleet))):
            fh.run(raw, out=tmp_path / name / "whole")
            out = tmp_path / name / "run"
            with pytest.raises(Stop):
                fh.run(raw | {"checkpoint_every": 1}, out=out, progress=Stopper(at_round=2))
            fh.run(raw, out=out, resume=True)
            assert_same_run(tmp_path / name / "whole", out)
