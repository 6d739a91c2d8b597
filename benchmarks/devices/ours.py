"""`fedhybrid flower join` as its own process, a server in this one: TLS, node keys, real rounds on loopback."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message

import fedhybrid as fh
from devices.processes import Memory, anon_peak, by_mapping, cpu_s, memory, peak_bytes, reset_peak, wait_idle
from fedhybrid.engine import Federation, RunFolder, World
from fedhybrid.engine.checkpoint import Checkpoint
from fedhybrid.errors import FedHybridError
from fedhybrid.integrations.flower.deployed.world import deployed
from fedhybrid.integrations.flower.link.control import register_nodes, start_run
from fedhybrid.integrations.flower.link.grid import RunGrid, open_run_grid
from fedhybrid.integrations.flower.link.keyfiles import read_public_key
from fedhybrid.integrations.flower.link.keys import KeyFolder, make_keys
from fedhybrid.integrations.flower.link.superlink import Superlink
from fedhybrid.integrations.flower.messages import TASK

__all__ = ["fleet_of_one", "measure_join"]

_SETTLE_S = 0.3  # after a task: its reply is being sent, pages go back to the system
_QUIET_S = 5.0
_LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the device, seen from outside, and what its reply says."""

    idle: Memory
    top_bytes: int
    top_anon_bytes: int
    cpu_s: float
    superlink_cpu_s: float
    round_trip_s: float
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A whole run: its tasks, the peak of their plan, and what of that is resident."""

    tasks: list[Task]
    plan_bytes: int
    resident_bytes: int


@dataclass(kw_only=True)
class Watched:
    """A grid to one device that measures it round each task; the server's driver uses it like any other."""

    grid: RunGrid
    pid: int
    superlink_pid: int
    tasks: list[Task] = field(default_factory=list)
    _sent: str = ""
    _before: dict[str, Any] = field(default_factory=dict)
    _looking: ExitStack = field(default_factory=ExitStack)

    def get_node_ids(self) -> list[int]:
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        if message.metadata.message_type != TASK:
            return self.grid.push_messages([message])
        time.sleep(_SETTLE_S)
        self._before = {"idle": memory(self.pid), "cpu_s": cpu_s(self.pid), "link_s": cpu_s(self.superlink_pid)}
        reset_peak(self.pid)
        self._before["anon"] = self._looking.enter_context(anon_peak(self.pid))
        self._before["at_s"] = time.perf_counter()
        (self._sent,) = self.grid.push_messages([message])
        return [self._sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = self.grid.pull_messages(message_ids)
        for reply in replies:
            if reply.metadata.reply_to_message_id == self._sent:
                self._ended(reply)
        return replies

    def _ended(self, reply: Message) -> None:
        round_trip_s = time.perf_counter() - self._before["at_s"]
        time.sleep(0.02)
        before = self._before
        self._looking.close()
        self.tasks.append(
            Task(
                idle=before["idle"],
                top_bytes=peak_bytes(self.pid),
                top_anon_bytes=before["anon"][0],
                cpu_s=cpu_s(self.pid) - before["cpu_s"],
                superlink_cpu_s=cpu_s(self.superlink_pid) - before["link_s"],
                round_trip_s=round_trip_s,
                metrics=dict(reply.content.metric_records["metrics"]),
            )
        )


def fleet_of_one(model: str, *, rounds: int, steps: int, batch: int, budget: str) -> dict[str, Any]:
    """A recipe for one device with a quarter of the digits; the policy is one that plans."""
    return {
        "method": "fedhybrid",
        "policy": "fedhybrid",
        "model": model,
        "dataset": "digits",
        "rounds": rounds,
        "data": {"clients": 4, "partition": "iid"},
        "fleet": {
            "clients_per_round": 1,
            "tiers": [{"name": "all", "budget": budget, "device": "raspberry-pi-4"}],
        },
        "train": {"batch_size": batch, "steps": steps, "lr": 0.02, "momentum": 0.9},
        "evaluation": {"every": rounds},
    }


def measure_join(
    folder: Path, model: str, *, tasks: int, steps: int, batch: int, budget: str, environment: dict[str, str]
) -> dict[str, Any]:
    """Everything about one device process that trains one model: `tasks` tasks of `steps` steps, then of one step."""
    keys = make_keys(folder / "keys", nodes=["device"])
    with Superlink(folder / "superlink", keys=keys) as superlink:
        register_nodes(superlink, [read_public_key(keys.node_public_key("device"))])
        with _joining(folder, superlink, keys, budget, environment) as device:
            before = _before_first_task(device, folder)
            long = fleet_of_one(model, rounds=tasks, steps=steps, batch=batch, budget=budget)
            many = _run(folder / "many", superlink, device, long)
            time.sleep(1.0)
            after, mappings = memory(device), by_mapping(device)
            idle_ratio = wait_idle(device, _QUIET_S)
            link = memory(superlink.pid)
            link_idle_ratio = wait_idle(superlink.pid, _QUIET_S)
            short = fleet_of_one(model, rounds=tasks, steps=1, batch=batch, budget=budget)
            few = _run(folder / "few", superlink, device, short).tasks
    found = {"model": model, "tasks": len(many.tasks), "steps": steps, "budget": budget}
    found |= _summary(many, few, steps, before, after)
    found |= {"idle_cpu_ratio": idle_ratio, "mappings": mappings}
    post_office = vars(link) | {
        "idle_cpu_ratio": link_idle_ratio,
        "cpu_s_a_task": _mean(t.superlink_cpu_s for t in few[1:]),
    }
    return found | {"superlink": post_office}


def _summary(run: _Run, few: list[Task], steps: int, before: Memory, after: Memory) -> dict[str, Any]:
    """Numbers of the long tasks but the first; beside it what a task costs apart from its steps."""
    many, plan_bytes, resident_bytes = run.tasks, run.plan_bytes, run.resident_bytes
    later = many[1:]
    idle = [task.idle.rss_bytes for task in later] + [after.rss_bytes]
    anon = [task.idle.anon_bytes for task in later] + [after.anon_bytes]
    over_idle = [task.top_bytes - task.idle.rss_bytes for task in later]
    first_s = [task.metrics["to-first-step-seconds"] for task in later]
    # Two lengths of a task give what a step takes and what is left at none.
    step_s = (_mean(t.cpu_s for t in later) - _mean(t.cpu_s for t in few[1:])) / (steps - 1)
    return {
        "connected": vars(before),
        "idle_rss_bytes": statistics.median(idle),
        "idle_rss_bytes_max": max(idle),
        "idle_anon_bytes": statistics.median(anon),
        "idle_anon_bytes_max": max(anon),
        "idle_rss_bytes_by_task": idle,
        "plan_bytes": plan_bytes,
        "resident_bytes": resident_bytes,
        "top_rss_bytes": max(task.top_bytes for task in later),
        "top_anon_bytes": max(task.top_anon_bytes for task in later),
        "over_idle_bytes": max(over_idle),
        "idle_rss_bytes_before_first_task": many[0].idle.rss_bytes,
        "over_plan_bytes": max(over_idle) - (plan_bytes - resident_bytes),
        "over_plan_bytes_first_task": many[0].top_bytes - many[0].idle.rss_bytes - (plan_bytes - resident_bytes),
        "to_first_step_ms": statistics.median(first_s) * 1000,
        "to_first_step_ms_max": max(first_s) * 1000,
        "to_first_step_ms_first_task": many[0].metrics["to-first-step-seconds"] * 1000,
        "task_s": statistics.median(t.metrics["seconds"] for t in later),
        "round_trip_s": statistics.median(t.round_trip_s for t in later),
        "cpu_s_a_task": _mean(t.cpu_s for t in later),
        "cpu_s_a_task_beside_steps": _mean(t.cpu_s for t in few[1:]) - step_s,
        "cpu_s_a_step": step_s,
        "runtime_bytes_reported": many[-1].metrics["runtime-bytes"],
    }


def _run(out: Path, superlink: Superlink, pid: int, recipe: dict[str, Any]) -> _Run:
    """A whole run on the superlink with the device that is there."""
    worlds: list[World] = []

    def assemble(job: Federation, folder: RunFolder, state: Checkpoint) -> World:
        worlds.append(deployed(watched, nodes=1, within_s=_LIMIT_S)(job, folder, state))
        return worlds[0]

    with open_run_grid(superlink, start_run(superlink)) as grid:
        watched = Watched(grid=grid, pid=pid, superlink_pid=superlink.pid)
        fh.run(recipe, out=out, assemble=assemble)
    (planned_bytes,) = {record.planned_peak_bytes for record in fh.load_run(out).clients if record.kind == "train"}
    assert planned_bytes is not None, "a task failed"
    return _Run(tasks=watched.tasks, plan_bytes=planned_bytes, resident_bytes=worlds[0].book.resident_bytes)


def _before_first_task(pid: int, folder: Path) -> Memory:
    """Once the device says that it is connected."""
    end_s = time.monotonic() + _LIMIT_S
    while "connected to" not in (folder / "join.log").read_text():
        if time.monotonic() > end_s or not Path(f"/proc/{pid}").exists():
            raise FedHybridError(f"the device did not connect: {(folder / 'join.log').read_text()}")
        time.sleep(0.05)
    time.sleep(_SETTLE_S)
    return memory(pid)


@contextmanager
def _joining(
    folder: Path, superlink: Superlink, keys: KeyFolder, budget: str, environment: dict[str, str]
) -> Iterator[int]:
    command = [sys.executable, "-m", "fedhybrid", "flower", "join", superlink.endpoint.address, "--name", "device"]
    command += ["--ca", str(keys.ca_certificate), "--key", str(keys.node_key("device")), "--home", str(folder / "home")]
    command += ["--budget", budget, "--device", "raspberry-pi-4", "--client", "0"]
    with (folder / "join.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
