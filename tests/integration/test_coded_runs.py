"""Coded training in whole runs: stragglers that own classes, noise, memory, and rounds from which nobody comes."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.run_parts import UNEQUAL, last_state, small, trained, world_of

import fedhybrid as fh
from fedhybrid.engine.costs import WorldCosts
from fedhybrid.experiment import RunResult
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.methods import CodedFedL
from fedhybrid.methods.coded import arrival, ledger
from fedhybrid.protocols import RoundPlan, ServerState
from fedhybrid.records import ClientTask
from fedhybrid.tree import tensors_of

RECIPE = Path(__file__).parents[2] / "recipes/methods/scfl.toml"
SLOW_ARRIVAL = 0.3
ALIKE: dict[str, Any] = {
    "clients_per_round": 4,
    "tiers": [{"name": "all", "budget": "100%", "device": "raspberry-pi-4"}],
}


@cache
def stragglers() -> dict[str, Any]:
    """The recipe: three slow clients of ten, each with about one class, which the others hardly hold."""
    return {name: table for name, table in tomllib.loads(RECIPE.read_text()).items() if name != "compare"}


def variant(**options: Any) -> dict[str, Any]:
    raw = copy.deepcopy(stragglers())
    return raw | {"method_options": raw["method_options"] | options}


def end_accuracy(run: RunResult) -> float:
    """Mean of the last five rounds."""
    last = [record.accuracy for record in run.rounds[-5:]]
    return sum(accuracy for accuracy in last if accuracy is not None) / 5


def time_to(run: RunResult, accuracy: float) -> float:
    """Virtual seconds, the coding among them."""
    return next((r.virtual_time_s for r in run.rounds if (r.accuracy or 0.0) >= accuracy), math.inf)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, RunResult], Path]:
    folder = tmp_path_factory.mktemp("stragglers")
    given = {
        "scfl": variant(),
        "drop": variant(mix=1.0, inverse=False),
        "wait": variant(mix=1.0) | {"schedule": {}},
        "codedfedl": stragglers() | {"method": "codedfedl", "method_options": {"coded_rows": 128}},
    }
    return {name: fh.run(raw, out=folder / name) for name, raw in given.items()}, folder


def chances(folder: Path) -> dict[str, float]:
    """What each tier's probability of arrival was said to be."""
    world = world_of(stragglers(), folder)
    costs, job = WorldCosts(world=world), world.job
    weights = {name: job.model.state_dict()[name] for name in ("head.weight",)}
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    found = {}
    for client in range(len(job.shards)):
        found[world.tier(client).name] = costs.arrival_probability(
            client,
            steps=5,
            within_s=costs.deadline_s or math.inf,
            bytes_up=num_bytes,
            bytes_down=num_bytes,
            submodel="head",
        )
    return found


@pytest.mark.slow
def test_stragglers_that_own_classes(runs: tuple[dict[str, RunResult], Path]) -> None:
    """Beats who drops them in accuracy and who waits for them in time."""
    results, folder = runs
    labels = build_federation(load_config(stragglers())).dataset.train.labels
    world = world_of(stragglers(), folder / "scfl")
    slow = [c for c in range(10) if world.tier(c).name == "slow"]
    assert len(slow) == 3
    owned = [
        label
        for label in range(10)
        if sum(int((labels[world.job.shards[c]] == label).sum()) for c in slow) > 0.8 * int((labels == label).sum())
    ]
    assert len(owned) >= 2, "slow clients own whole classes"
    assert chances(folder / "scfl")["slow"] == pytest.approx(SLOW_ARRIVAL, abs=0.02)
    ends = {name: end_accuracy(run) for name, run in results.items()}
    assert ends["scfl"] > ends["drop"] + 0.05
    assert ends["scfl"] > 0.97
    assert ends["scfl"] > ends["wait"] - 0.01
    assert time_to(results["scfl"], 0.95) < 0.7 * time_to(results["wait"], 0.95)
    assert results["scfl"].rounds[-1].virtual_time_s < 0.6 * results["wait"].rounds[-1].virtual_time_s
    assert ends["codedfedl"] > ends["drop"] + 0.05


@pytest.mark.slow
def test_clients_come_as_often_as_was_said(runs: tuple[dict[str, RunResult], Path]) -> None:
    results, folder = runs
    said = chances(folder / "scfl")
    assert said["fast"] > 0.99
    for tier, chance in said.items():
        tasks = [task for task in trained(results["scfl"].clients) if task.tier == tier]
        assert {task.outcome for task in tasks} <= {"completed", "late"}
        came = sum(task.outcome == "completed" for task in tasks) / len(tasks)
        assert abs(came - chance) <= 4 * math.sqrt(chance * (1 - chance) / len(tasks)) + 1e-9


@pytest.mark.slow
def test_everybody_stays_in_the_budget_and_each_task_takes_what_was_planned(
    runs: tuple[dict[str, RunResult], Path],
) -> None:
    for run in runs[0].values():
        for task in run.clients:
            if task.outcome == "completed":
                assert task.planned_peak_bytes == task.measured_peak_bytes
                assert task.planned_peak_bytes is not None
                assert task.planned_peak_bytes <= task.budget_bytes


@pytest.mark.slow
def test_more_noise_learns_worse_and_tells_less(tmp_path: Path) -> None:
    """The loss of training at the end, and the bits of the ledger, over five levels."""
    losses, bits = [], []
    for sigma in (0.1, 1.0, 2.0, 4.0, 8.0):
        raw = variant(sigma=sigma, coded_rows=64) | {"rounds": 30, "model_options": {"features": 100}}
        fh.run(raw, out=tmp_path / f"{sigma}")
        losses.append(training_loss(raw, tmp_path / f"{sigma}"))
        entries = ledger(last_state(tmp_path / f"{sigma}").server.extra)
        assert len(entries) == 10
        bits.append(max(entry.bits for entry in entries))
    assert losses == sorted(losses)
    assert losses[-1] > 1.2 * losses[0]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < 0.5 * bits[0]


def training_loss(raw: dict[str, Any], folder: Path) -> float:
    """Half the mean squared error on all training samples."""
    job = build_federation(load_config(raw))
    job.model.load_state_dict(load_file(folder / "model.safetensors"))
    x, y = job.dataset.train.batch(torch.arange(len(job.dataset.train)))
    with torch.no_grad():
        wrong = job.model.eval()(x) - torch.eye(10)[y]
    return 0.5 * float(wrong.square().sum(dim=1).mean())


def frozen(model: str, options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return small(
        model=model,
        model_options=options,
        data={"clients": 4, "alpha": 5.0},
        train={"batch_size": 8, "steps": 1, "lr": 0.01},
        **changes,
    )


def sizes(raw: dict[str, Any]) -> tuple[int, int]:
    """Bytes of all frozen layers, and of the last one."""
    tensors = tensors_of(build_federation(load_config(raw)).model)
    total = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    last = sum(size for name, size in total.items() if name.startswith("head."))
    return sum(total.values()) - last, last


@pytest.mark.parametrize(("model", "options"), [("cnn", {"width": 0.25}), ("resnet20", {"width": 0.25})])
def test_a_frozen_extractor_travels_once_and_only_its_head_moves(
    model: str, options: dict[str, Any], tmp_path: Path
) -> None:
    raw = frozen(model, options, method="scfl", method_options={"coded_rows": 16}, rounds=2)
    run = fh.run(raw, out=tmp_path / "run")
    start = tensors_of(build_federation(load_config(raw)).model)
    end = load_file(tmp_path / "run/model.safetensors")
    assert {name for name in start if not start[name].equal(end[name])} == {"head.weight", "head.bias"}
    body, last = sizes(raw)
    for task in run.clients:
        assert task.outcome == "completed"
        assert task.bytes_down == (body if task.kind == "encode" else last)
        features = start["head.weight"].shape[1] + 1
        assert task.bytes_up == (4 * 16 * (features + 10) if task.kind == "encode" else last)


def test_it_travels_once_without_coding_too(tmp_path: Path) -> None:
    """With the first task of each client; only two of four take part in a round."""
    fleet = UNEQUAL | {"clients_per_round": 2}
    raw = frozen("cnn", {"width": 0.25}, method="scfl", method_options={"mix": 1.0}, rounds=3, fleet=fleet)
    run = fh.run(raw, out=tmp_path / "run")
    body, last = sizes(raw)
    seen: set[int] = set()
    for record in run.rounds:
        for task in (task for task in run.clients if task.round == record.round):
            assert task.bytes_down == (last if task.client in seen else body + last)
            assert task.bytes_up == last
        seen.update(record.cohort)
    assert len(run.clients) > len(seen), "somebody has come twice"
    assert last_state(tmp_path / "run").server.extra["coded/holders"].tolist() == sorted(seen)


def test_who_is_late_gets_the_frozen_layers_again(tmp_path: Path) -> None:
    """The server has not heard from them, so it does not know that they have anything."""
    raw = frozen("cnn", {"width": 0.25}, method="scfl", method_options={"mix": 1.0}, rounds=2, fleet=ALIKE)
    free = fh.run(raw, out=tmp_path / "free")
    assert {task.bytes_down for task in free.clients if task.round == 1} == {sizes(raw)[1]}
    deadline_s = 0.999 * min(task.virtual_time_s for task in free.clients if task.round == 0)
    run = fh.run(raw | {"schedule": {"deadline_s": deadline_s}}, out=tmp_path / "run")
    assert {task.outcome for task in run.clients} == {"late"}
    assert {task.bytes_down for task in run.clients} == {sum(sizes(raw))}


def test_loads_are_chosen_by_the_probabilities_of_the_tasks_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow link, where the frozen layers would take half of the time: they are there since the coding."""
    told: dict[int, tuple[int, float]] = {}
    found: dict[int, tuple[int, float]] = {}
    assign = CodedFedL.assign

    def watched(self: CodedFedL, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        tasks = assign(self, server, plan)
        for task in tasks:
            if plan.phase == "encode":
                told[task.client] = task.options["steps"], task.options["arrival"]
            elif plan.round_index == 0:
                found[task.client] = task.work.steps or 0, arrival(plan, task)
        return tasks

    monkeypatch.setattr(CodedFedL, "assign", watched)
    fleet = ALIKE | {"delays": {"compute_ratio": 0.5, "erasure": 0.1}}
    raw = frozen("cnn", {"width": 0.5}, method="codedfedl", method_options={"coded_rows": 32}, fleet=fleet)
    free = fh.run(raw | {"rounds": 1}, out=tmp_path / "free")
    deadline_s = max(task.virtual_time_s for task in trained(free.clients))
    fh.run(raw | {"rounds": 1, "schedule": {"deadline_s": deadline_s}}, out=tmp_path / "run")
    assert told == found
    assert all(0 < chance < 1 for _, chance in found.values())


def test_who_has_little_memory_codes_a_few_rows_at_a_time(tmp_path: Path) -> None:
    raw = small(
        method="scfl",
        model="fourier",
        model_options={"features": 64},
        method_options={"coded_rows": 100},
        data={"clients": 3, "alpha": 5.0},
        fleet={"clients_per_round": 3},
        train={"batch_size": 8, "steps": 1, "lr": 2.0},
        rounds=1,
    )
    run = fh.run(raw, out=tmp_path / "run")
    coding = [task for task in run.clients if task.kind == "encode"]
    assert len(coding) == 3
    for task in coding:
        rows = int(task.submodel.removeprefix("encode."))
        assert rows < 100
        assert task.measured_peak_bytes == task.planned_peak_bytes
        assert (task.planned_peak_bytes or 0) <= task.budget_bytes
        assert task.bytes_up == 4 * 100 * (64 + 10), "all rows travel, whatever a step holds"
        assert task.steps % -(-100 // rows) == 0
    held = last_state(tmp_path / "run").server.extra
    assert held["coded/head/x"].shape == (100, 64)
    assert (held["coded/head/x"].abs().sum(dim=1) > 0).all()


def test_the_server_goes_on_when_nobody_is_in_time(tmp_path: Path) -> None:
    raw = small(
        method="scfl",
        model="fourier",
        model_options={"features": 64},
        method_options={"coded_rows": 64},
        data={"clients": 4, "alpha": 5.0},
        schedule={"deadline_s": 1e-6},
        train={"batch_size": 8, "steps": 2, "lr": 2.0},
        rounds=3,
    )
    run = fh.run(raw, out=tmp_path / "coded")
    assert all(record.completed == 0 for record in run.rounds)
    assert last_state(tmp_path / "coded").server.version == 3
    accuracies = [record.accuracy or 0.0 for record in run.rounds]
    assert accuracies[-1] > 0.5, "coded rows alone teach the server"
    alone = fh.run(raw | {"method_options": {"mix": 1.0}}, out=tmp_path / "alone")
    assert len({record.accuracy for record in alone.rounds}) == 1
    assert last_state(tmp_path / "alone").server.version == 0


@pytest.mark.parametrize("method", ["fedbuff", "teasq-fed"])
def test_asynchronous_methods_meet_delays(method: str, tmp_path: Path) -> None:
    """The same tasks, each longer by what its own seed says."""
    raw = small(
        method=method,
        schedule={"kind": "asynchronous", "in_flight": 2, "buffer": 2},
        fleet=UNEQUAL,
        data={"clients": 4, "alpha": 5.0},
        train={"batch_size": 8, "steps": 2},
        rounds=3,
    )
    late = raw | {"fleet": UNEQUAL | {"delays": {"compute_ratio": 2.0, "erasure": 0.3}}}
    plain, delayed = fh.run(raw, out=tmp_path / "plain"), fh.run(late, out=tmp_path / "late")
    shortest = {task.client: task.virtual_time_s for task in plain.clients if task.outcome == "completed"}
    known = [task for task in delayed.clients if task.client in shortest and task.outcome == "completed"]
    assert known
    longer = [task.virtual_time_s / shortest[task.client] for task in known]
    assert min(longer) > 1.0
    assert sum(longer) / len(longer) > 1.1
    assert len(set(longer)) == len(longer)
    assert sum(task.bytes_up for task in known) > sum(min(t.bytes_up for t in plain.clients) for _ in known)


@pytest.mark.slow
def test_the_benchmark_prints_privacy_accuracy_and_costs() -> None:
    script = RECIPE.parents[2] / "benchmarks/scfl.py"
    command = [sys.executable, str(script), "--rounds", "2", "--sigmas", "0.3", "3", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    bits = [run["bits"] for run in found["runs"]]
    assert bits[0] > bits[1] > 0
    assert bits[2] is None, "rows without noise have no bound"
    assert all(row["menu_cost"] < row["single_cost"] for row in found["contracts"])
