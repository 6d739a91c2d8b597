"""A method's one-off tasks, and what its clients keep: a toy method that counts samples first and tasks afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from safetensors.torch import load_file

import fedhybrid as fh
from fedhybrid.methods import METHODS
from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.methods.local import train_locally
from fedhybrid.protocols import ClientRuntime, Optimizer, ServerState
from fedhybrid.records import ClientTask, Update

RECIPE: dict[str, Any] = {
    "method": "census",
    "policy": "round-robin",
    "model": "cnn",
    "dataset": "digits",
    "rounds": 4,
    "seed": 3,
    "model_options": {"width": 0.25},
    "data": {"clients": 8, "alpha": 1.0},
    "fleet": {"clients_per_round": 4},
    "train": {"batch_size": 8, "steps": 2},
    "checkpoint_every": 1,
}


@final
@dataclass(frozen=True, kw_only=True)
class Census(AbstractAveraging):
    """FedAvg after a census: every client tells once how much it holds, and then counts its own tasks."""

    @property
    def plans(self) -> bool:
        return False

    @property
    def preparations(self) -> tuple[str, ...]:
        return ("census",)

    def optimizer(self, base: Optimizer) -> Optimizer:
        return base

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        tasks = client.state.get("tasks", torch.zeros((), dtype=torch.int64))
        if task.kind == "census":
            assert not client.state
            return Update(
                client=task.client, round_index=task.round_index, weights={}, num_samples=client.num_samples,
                samples_seen=0, steps=0, loss_mean=0.0, squared_loss_sum=0.0, measured_peak_bytes=0, kind=task.kind,
                metrics={"held": float(client.num_samples)}, state={"tasks": tasks},
            )  # fmt: skip
        assert "tasks" in client.state, "the census comes first"
        update = train_locally(task, client)
        return replace(update, state={"tasks": tasks + 1}, metrics={"tasks": float(tasks + 1)})

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        if updates[0].kind == "census":
            held = sum(update.metrics["held"] for update in updates)
            return replace(server, extra={"held": torch.tensor(held)})
        assert "held" in server.extra
        counted = torch.tensor([update.metrics["tasks"] for update in updates])
        return replace(super().aggregate(server, updates), extra={**server.extra, "counted": counted})


@final
class Interrupting:
    """Progress that ends the run after some rounds, as a key press would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None: ...

    def on_stage(self, label: str, stage: str) -> None: ...

    def on_task(self, label: str, record: Any) -> None: ...

    def on_round(self, label: str, record: Any) -> None:
        if record.round + 1 == self.after:
            raise KeyboardInterrupt

    def on_end(self, label: str, summary: Any) -> None: ...


@pytest.fixture(autouse=True)
def _census(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "census", Census)


def test_every_client_prepares_once_before_the_first_round(tmp_path: Path) -> None:
    result = fh.run(RECIPE, out=tmp_path / "run")
    census = [task for task in result.clients if task.kind == "census"]
    training = [task for task in result.clients if task.kind == "train"]
    assert sorted(task.client for task in census) == list(range(8))
    assert {task.round for task in census} == {0}
    assert all(task.bytes_up == 8 and task.outcome == "completed" for task in census)
    first_start_s = min(task.at_s - task.virtual_time_s for task in training)
    assert max(task.at_s for task in census) <= first_start_s + 1e-12
    assert len(training) == 16
    assert all(task.steps == 2 for task in training)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_clients_keep_survives_rounds_stops_and_workers(tmp_path: Path, workers: int) -> None:
    whole = fh.run(RECIPE, out=tmp_path / "whole")
    out = tmp_path / "stopped"
    for after in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            fh.run(RECIPE | {"workers": workers}, out=out, resume=True, progress=Interrupting(after))
    again = fh.run(RECIPE, out=out, resume=True)
    assert again.clients == whole.clients
    names = ("model.safetensors", "checkpoint.safetensors")
    assert (out / names[0]).read_bytes() == (tmp_path / "whole" / names[0]).read_bytes()
    # Round-robin over 8 clients, 4 a round: each has done two tasks, and has counted them.
    states = [fh.load_run(folder).folder / "states" for folder in (out, tmp_path / "whole")]
    for folder in states:
        files = sorted(folder.iterdir())
        assert len(files) == 8
        assert {int(load["tasks"]) for load in map(_state, files)} == {2}


def _state(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)
