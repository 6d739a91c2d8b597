"""Whole small runs and what is asked of them: recipes of a second, slow devices, equal folders, ends of tasks."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from safetensors.torch import load_file

import fedhybrid as fh
from fedhybrid.devices import load_profile
from fedhybrid.engine import RunFolder
from fedhybrid.engine.checkpoint import Checkpoint, read_checkpoint
from fedhybrid.engine.world import World, assemble
from fedhybrid.experiment import RunResult
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.records import ClientRecord, RoundRecord, Summary
from tests.federation_parts import recipe

# All ways in which a task can end badly, together as often as not in three tasks of ten.
ALL_FAILURES = dict.fromkeys(("crash", "time_out", "disconnected", "out_of_memory", "corrupt", "non_finite"), 0.05)
# Devices of one kind that are all a little unequal, so that no two tasks end at the same moment.
UNEQUAL = {
    "clients_per_round": 4,
    "tiers": [
        {"name": "weak", "budget": "90%", "device": "raspberry-pi-4", "speed_spread": 0.6},
        {"name": "strong", "budget": "100%", "device": "laptop", "speed_spread": 0.6},
    ],
}
_ACTIONS = {"actions": ["recompute", "split"]}
SQUEEZED = [
    {"name": "delta"},
    {"name": "error-feedback"},
    {"name": "top-k", "ratio": 0.1},
    {"name": "quantise", "bits": 8},
]


def small(**changes: Any) -> dict[str, Any]:
    """A narrow network, whose smallest plan needs 82 % of the unplanned step (89 % without splits); uniform policy."""
    base = recipe(model="cnn", model_options={"width": 0.25}, policy="uniform", fleet=UNEQUAL, planner=_ACTIONS)
    return copy.deepcopy(base | changes)  # tests change what they get


def asynchronous(method: str = "fedasync", **changes: Any) -> dict[str, Any]:
    """The same with plans, without rounds: four clients at work at any time."""
    schedule = {"kind": "asynchronous", "in_flight": 4} | ({"buffer": 3} if method == "fedbuff" else {})
    return small(**{"method": method, "schedule": schedule, "planner": _ACTIONS | {"enabled": "on"}, **changes})


def slow_device(folder: Path, name: str, *, times: float = 1e4) -> str:
    """The path of a laptop's profile with everything so many times slower, so that small tasks take minutes."""
    laptop = load_profile("laptop")
    table = {
        "name": name,
        "title": f"A laptop, {times:g} times slower",
        "sources": ["made for a test"],
        "memory_bytes": laptop.memory_bytes,
        "op_overhead_s": laptop.op_overhead_s * times,
        "uplink_bytes_per_s": laptop.uplink_bytes_per_s / times,
        "downlink_bytes_per_s": laptop.downlink_bytes_per_s / times,
        "kinds": {
            kind: {"flops_per_s": rate.flops_per_s / times, "bytes_per_s": rate.bytes_per_s / times}
            for kind, rate in laptop.kinds.items()
        },
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(table))
    return str(path)


def rounds_of(result: RunResult) -> list[RoundRecord]:
    """All rounds, without the one figure that may differ."""
    return [dataclasses.replace(record, wall_time_s=0.0) for record in result.rounds]


def assert_same_run(one: Path, other: Path) -> None:
    """Two finished runs are equal to the byte, in all that they store and in what their clients have kept."""
    first, second = fh.load_run(one), fh.load_run(other)
    assert first.summary is not None
    assert second.summary is not None
    assert rounds_of(first) == rounds_of(second)
    assert first.clients == second.clients
    for name in ("model.safetensors", "clients.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    plans = [{p.name: p.read_bytes() for p in (folder / "plans").iterdir()} for folder in (one, other)]
    assert plans[0] == plans[1]
    assert kept_states(one) == kept_states(other)
    same = {"wall_time_s": 0.0, "runtime_bytes": 0}
    assert dataclasses.replace(first.summary, **same) == dataclasses.replace(second.summary, **same)


def kept_states(folder: Path) -> dict[str, bytes]:
    """What each client has kept, by its number; in the folder there is nothing but that."""
    numbers = read_checkpoint(folder / "checkpoint.safetensors").client_states
    files = {f"{client}.{number}.safetensors": client for client, number in numbers.items()}
    found = {path.name: path for path in (folder / "states").iterdir()} if files or (folder / "states").exists() else {}
    assert found.keys() == files.keys()
    return {files[name]: path.read_bytes() for name, path in found.items()}


def last_state(folder: Path) -> Checkpoint:
    """The checkpoint of a run."""
    return read_checkpoint(folder / "checkpoint.safetensors")


def model_of(folder: Path) -> dict[str, bytes]:
    """The bytes of each tensor of a run's model."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def start_s(task: ClientRecord) -> float:
    """When a task began."""
    return task.at_s - task.virtual_time_s


def trained(records: Iterable[ClientRecord]) -> list[ClientRecord]:
    """The tasks of the kind "train"."""
    return [record for record in records if record.kind == "train"]


def assert_books_balance(result: RunResult) -> None:
    """Rounds, tasks and summary count the same things."""
    summary = result.summary
    assert summary is not None
    for record in result.rounds:
        tasks = [task for task in result.clients if task.round == record.round]
        own = trained(tasks)
        assert sorted(task.client for task in own) == record.cohort
        assert record.completed == sum(task.outcome == "completed" for task in own)
        assert record.completed + record.failed == len(own)
        assert record.late == sum(task.outcome == "late" for task in own)
        for name in ("bytes_up", "bytes_down", "violations"):
            assert getattr(record, name) == sum(getattr(task, name) for task in tasks), name
    for name in ("bytes_up", "bytes_down", "violations"):
        assert getattr(summary, name) == sum(getattr(record, name) for record in result.rounds), name
    outcomes = Counter(task.outcome for task in trained(result.clients))
    completed = outcomes.pop("completed", 0)
    assert summary.failures == outcomes
    assert completed + outcomes.total() == len(trained(result.clients))
    assert sum(summary.failures.values()) == sum(record.failed for record in result.rounds)
    table = summary.participation.values()
    assert sum(row["tasks"] for row in table) == sum(record.completed for record in result.rounds)
    assert sum(row["failed"] for row in table) == sum(record.failed for record in result.rounds)


def world_of(raw: Mapping[str, Any], folder: Path) -> World:
    """The parts of a finished run once more, with the plans of its folder."""
    return assemble(build_federation(load_config(raw)), RunFolder(folder), last_state(folder))


def child_processes(of: int | None = None) -> set[int]:
    """The processes whose parent is this one (or another), by /proc."""
    parent, found = os.getpid() if of is None else of, set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[1]) == parent and fields[0] != "Z":
            found.add(int(path.parent.name))
    return found


class Stop(BaseException):
    """What a `Stopper` raises: like a KeyboardInterrupt, nothing catches it on its way."""


class Stopper:
    """Listens to a run and stops it, as soon as a round is stored or, with `tasks`, after so many ends of tasks."""

    def __init__(self, *, at_round: int | None = None, tasks: int | None = None) -> None:
        self._at_round, self._tasks = at_round, tasks
        self.first_round: int | None = None
        self.seen: list[ClientRecord] = []

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        self.first_round = first_round

    def on_stage(self, label: str, stage: str) -> None:
        pass

    def on_task(self, label: str, record: ClientRecord) -> None:
        self.seen.append(record)
        if len(self.seen) == self._tasks:
            raise Stop

    def on_round(self, label: str, record: RoundRecord) -> None:
        if record.round == self._at_round:
            raise Stop

    def on_end(self, label: str, summary: Summary) -> None:
        pass
