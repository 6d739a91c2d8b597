"""TEASQ-Fed in runs: limits, admission, bytes, stops in the middle of a merge, and what it is good for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import tomli_w
from tests.run_parts import Stop, Stopper, assert_same_run, model_of, small, start_s

import fedhybrid as fh
from fedhybrid.devices import load_profile
from fedhybrid.experiment import RunResult
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.methods import TeasqFed
from fedhybrid.protocols import ServerState
from fedhybrid.records import COMPLETED, ClientRecord, Update
from fedhybrid.tree import tensors_of, total_bytes
from fedhybrid.updates import parse_pipeline

CAP, CACHE, MERGES = 4, 3, 7
CLIENTS = 8
DATA = {"clients": CLIENTS, "alpha": 5.0}
FLEET = {
    "clients_per_round": CAP,
    "tiers": [
        {"name": "slow", "budget": "100%", "device": "raspberry-pi-4", "speed_spread": 0.6},
        {"name": "fast", "budget": "100%", "device": "laptop", "speed_spread": 0.6},
    ],
}


def asynchronous(method: str = "teasq-fed", *, buffer: int = CACHE, **changes: Any) -> dict[str, Any]:
    """Eight devices of two kinds, four at work at any time."""
    schedule = {"kind": "asynchronous", "in_flight": CAP, "buffer": buffer}
    plain = {"method": method, "policy": "first-come", "rounds": MERGES, "data": DATA, "fleet": FLEET}
    return small(**plain | {"schedule": schedule, "evaluation": {"every": MERGES}} | changes)


def most_at_once(tasks: Sequence[ClientRecord]) -> int:
    """Tasks under way at the same time; one that ends as another begins does not count."""
    moments = [(start_s(task) + 1e-9, 1) for task in tasks] + [(task.at_s, -1) for task in tasks]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def test_one_at_a_time_without_compression_is_fedasync(tmp_path: Path) -> None:
    """Same schedule, same policy, same proximal term: the same weights, to the bit."""
    options = {
        "fedasync": {"mixing": 0.6, "staleness": "polynomial", "exponent": 0.5, "mu": 0.01},
        "tea-fed": {},
        "teasq-fed": {"start": "1/32"},
    }
    found = {}
    for method, own in options.items():
        run = fh.run(asynchronous(method, buffer=1, method_options=own), out=tmp_path / method)
        assert run.summary is not None
        assert run.summary.staleness_mean is not None
        assert run.summary.staleness_mean > 0.5
        found[method] = model_of(run.folder)
    assert found["tea-fed"] == found["teasq-fed"] == found["fedasync"]


class TestAdmission:
    @pytest.mark.parametrize("failures", [{}, {"crash": 0.2, "disconnected": 0.1}])
    def test_the_cap_holds_and_each_update_is_merged_once(
        self, failures: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        merged: list[list[tuple[int, int, float]]] = []
        aggregate = TeasqFed.aggregate

        def watched(self: TeasqFed, server: ServerState, updates: Sequence[Update]) -> ServerState:
            merged.append([(update.client, update.round_index, update.loss_mean) for update in updates])
            return aggregate(self, server, updates)

        monkeypatch.setattr(TeasqFed, "aggregate", watched)
        run = fh.run(asynchronous(failures=failures), out=tmp_path / "run")
        arrived = [task for task in run.clients if task.outcome == COMPLETED]
        assert any(task.outcome != COMPLETED for task in run.clients) == bool(failures)
        assert most_at_once(run.clients) == CAP
        assert len(arrived) == MERGES * CACHE
        assert [len(updates) for updates in merged] == [CACHE] * MERGES
        assert [key for updates in merged for key in updates] == [
            (task.client, task.round - task.staleness, task.train_loss) for task in arrived
        ]

    def test_devices_are_served_in_the_order_in_which_they_became_idle(self, tmp_path: Path) -> None:
        run = fh.run(asynchronous(), out=tmp_path / "run")
        tasks = sorted(run.clients, key=start_s)
        # At the end some tasks are still under way, which are not in the records.
        assert {task.client for task in tasks[: CLIENTS - 2]} <= set(range(CLIENTS))
        firsts = [task.client for task in tasks[: CLIENTS - 2]]
        assert len(set(firsts)) == len(firsts), "nobody has a second task while others have had none"
        idle_since = {task.client: task.at_s for task in run.clients[::-1]}  # the first end of each
        again = [(start_s(task), idle_since.pop(task.client)) for task in tasks if self.second(task, tasks)]
        assert len(again) >= 4
        assert [since_s for _, since_s in again] == sorted(since_s for _, since_s in again)

    @staticmethod
    def second(task: ClientRecord, tasks: Sequence[ClientRecord]) -> bool:
        """Whether it is its client's second task."""
        own = [other for other in tasks if other.client == task.client]
        return len(own) > 1 and own[1] is task


class TestStops:
    @pytest.mark.parametrize("tasks", [4, pytest.param(10, marks=pytest.mark.slow)])
    def test_in_the_middle_of_a_merge(self, tasks: int, tmp_path: Path) -> None:
        """What had arrived for it arrives again; nothing is lost, and nothing counts twice."""
        raw = asynchronous(checkpoint_every=1, method_options={"start": "0.1/4", "weaker_every": 2})
        fh.run(raw, out=tmp_path / "whole")
        stopper = Stopper(tasks=tasks)
        with pytest.raises(Stop):
            fh.run(raw, out=tmp_path / "stopped", progress=stopper)
        arrivals = sum(record.outcome == COMPLETED for record in stopper.seen)
        cached = arrivals % CACHE
        assert cached
        again = Stopper()
        fh.run(raw, out=tmp_path / "stopped", resume=True, progress=again)
        assert again.first_round == (arrivals - cached) // CACHE
        assert again.seen[:cached] == stopper.seen[-cached:]
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")


class TestBytes:
    def test_of_each_task_follow_from_the_ladder_and_from_who_was_there_before(self, tmp_path: Path) -> None:
        raw = asynchronous(method_options={"start": "0.1/4", "weaker_every": 2}, rounds=12)
        run = fh.run(raw, out=tmp_path / "run")
        job = build_federation(load_config(raw))
        model, method = tensors_of(job.model), job.method
        returning = 0
        merged: set[int] = set()
        for task in sorted(run.clients, key=lambda task: task.at_s):
            transport = method.transport(task.round - task.staleness)
            assert transport is not None
            expected = parse_pipeline(transport.up, where="up").expected_bytes(model)
            assert task.bytes_up == expected
            if task.bytes_down != total_bytes(model):
                assert task.bytes_down == expected
                assert task.client in merged
                returning += 1
            merged.add(task.client)
        assert returning >= 10
        assert {task.bytes_up for task in run.clients} >= {total_bytes(model)}, "the ladder's end was reached"

    def test_recipe_and_method_do_not_both_compress(self, tmp_path: Path) -> None:
        with pytest.raises(fh.FedHybridError, match=r"take \[traffic\] out of the recipe"):
            fh.run(asynchronous(traffic={"down": [{"name": "quantise", "bits": 8}]}), out=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_the_search_runs_real_trials_until_one_loses_little(tmp_path: Path) -> None:
    """From strong to weak, each a run of the recipe; a second search finds all of them done."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps(asynchronous(rounds=100, evaluation={"every": 1})))
    script = Path(__file__).parents[2] / "benchmarks/teasq.py"
    options = ["--rounds", "12", "--ladder", "0.01/2 0.25/8 1/32", "--most-loss", "0.1", "--out", str(tmp_path / "out")]
    told = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(script), str(recipe), *options],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert told[0] == told[1]
    rows = re.findall(r"^\| (\S+/\d+) \| (\S+) \| (\S+) \|$", told[0], flags=re.MULTILINE)
    losses = [float(loss) for _, _, loss in rows]
    assert all(loss > 0.1 for loss in losses[:-1])
    assert losses[-1] <= 0.1
    assert rows[0][0] == "0.01/2"
    assert len(rows) > 1, "two bits for one element of a hundred are not enough"
    assert f'start = "{rows[-1][0]}"' in told[0]
    for strength, accuracy, _ in rows:
        folder = tmp_path / "out" / f"{strength.replace('/', '-')}-seed-1"
        tested = [record.accuracy for record in fh.load_run(folder).rounds]
        assert len(tested) == 12
        assert float(accuracy) == pytest.approx(mean(a for a in tested[-4:] if a is not None), abs=5e-4)


SEEDS, TARGET = (1, 2), 0.9


def profile(folder: Path, name: str, times: float) -> str:
    """A device that computes so many times slower than a slow laptop, with a link of a megabyte a second."""
    laptop = load_profile("laptop")
    table = {
        "name": name,
        "title": f"{times:g} times slower",
        "sources": ["made for a test"],
        "memory_bytes": laptop.memory_bytes,
        "op_overhead_s": laptop.op_overhead_s * 10 * times,
        "uplink_bytes_per_s": 1e6,
        "downlink_bytes_per_s": 4e6,
        "kinds": {
            kind: {"flops_per_s": rate.flops_per_s / times / 10, "bytes_per_s": rate.bytes_per_s / times / 10}
            for kind, rate in laptop.kinds.items()
        },
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(table))
    return str(path)


def reached_s(run: RunResult) -> float:
    """Virtual seconds until the target; every round is tested."""
    return next(r.virtual_time_s for r in run.rounds if r.accuracy is not None and r.accuracy >= TARGET)


def last_accuracy(run: RunResult) -> float:
    return mean(record.accuracy for record in run.rounds[-8:] if record.accuracy is not None)


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[RunResult]]:
    """FedAvg, TEA-Fed and TEASQ-Fed on 32 devices of speeds 1, 1/3 and 1/10, eight at work at a time."""
    folder = tmp_path_factory.mktemp("races")
    tiers = [
        {"name": name, "budget": "100%", "share": share, "device": profile(folder, name, times)}
        for name, share, times in (("fast", 2, 1.0), ("middle", 1, 3.0), ("slow", 1, 10.0))
    ]
    common: dict[str, Any] = {
        "model": "cnn",
        "model_options": {"width": 0.5},
        "dataset": "digits",
        "data": {"clients": 32, "alpha": 1.0},
        "fleet": {"clients_per_round": 8, "tiers": tiers},
        "train": {"batch_size": 16, "epochs": 2, "lr": 0.03, "momentum": 0.5},
    }
    schedule = {"kind": "asynchronous", "in_flight": 8, "buffer": 4}
    waits = {"policy": "first-come", "schedule": schedule, "rounds": 48}
    variants: dict[str, dict[str, Any]] = {
        "fedavg": {"method": "fedavg", "policy": "uniform", "rounds": 14},
        "tea-fed": {"method": "tea-fed"} | waits,
        "teasq-fed": {"method": "teasq-fed", "method_options": {"start": "0.25/8", "weaker_every": 0}} | waits,
    }
    return {
        name: [fh.run(common | own | {"seed": seed}, out=folder / f"{name}-{seed}") for seed in SEEDS]
        for name, own in variants.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_needs_at_most_half_of_the_time_of_synchronous_rounds(races: dict[str, list[RunResult]]) -> None:
    took_s = {name: mean(reached_s(run) for run in runs) for name, runs in races.items()}
    assert took_s["teasq-fed"] <= 0.5 * took_s["fedavg"], took_s


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quarter_of_the_elements_in_eight_bits_costs_little(races: dict[str, list[RunResult]]) -> None:
    """Uploads are at least four times smaller, for at most three points of accuracy."""
    plain, packed = races["tea-fed"], races["teasq-fed"]
    up_bytes = {
        name: mean(task.bytes_up for run in races[name] for task in run.clients) for name in ("tea-fed", "teasq-fed")
    }
    assert up_bytes["tea-fed"] >= 4 * up_bytes["teasq-fed"]
    down_bytes = {name: sum(task.bytes_down for run in races[name] for task in run.clients) for name in up_bytes}
    assert down_bytes["tea-fed"] >= 3 * down_bytes["teasq-fed"], "first downloads are whole"
    loss = mean(map(last_accuracy, plain)) - mean(map(last_accuracy, packed))
    assert loss <= 0.03
