"""A checkpoint: everything that the next round depends on, to the last bit, tasks under way among it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.scene_parts import same_tensors

from fedhybrid.engine.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedhybrid.engine.driver import PendingTask
from fedhybrid.errors import ConfigError
from fedhybrid.protocols import ServerState
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import Tensors

NEW: Tensors = {"w": torch.randn(300, 20), "count": torch.tensor(5)}
OLD: Tensors = {"w": torch.randn(300, 20), "count": torch.tensor(4)}


def pending(ticket: int, weights: Tensors, **changes: Any) -> PendingTask:
    fields: dict[str, Any] = {
        "round_index": 7,
        "client": ticket + 40,
        "weights": weights,
        "work": LocalWork(epochs=2, batch_size=8, lr=0.1 + 0.2, last_batch="drop", steps=None, samples=17),
        "plan": "laptop-keep-all",
        "seed": 2**63 - 1,
        "kind": "train",
        "options": {"depth": 3, "names": ["a", "b"]},
    }
    return PendingTask(ticket=ticket, start_s=0.1 * ticket, task=ClientTask(**(fields | changes)))


def checkpoint(**changes: Any) -> Checkpoint:
    fields: dict[str, Any] = {
        "next_round": 3,
        "now_s": 0.1 + 0.2,
        "wall_time_s": 7.0,
        "rounds_length_bytes": 12,
        "clients_length_bytes": 34,
        "policy": {"arms": {"3": [1, 0.25]}},
        "server": ServerState(weights=NEW, extra={"w": torch.randn(4)}, version=9),
        "selections": 77,
        "next_ticket": 123,
        "client_states": {"4": 1, "17": 2},
    }
    return Checkpoint(**(fields | changes))


def stored(tmp_path: Path, state: Checkpoint) -> Checkpoint:
    write_checkpoint(tmp_path / "c", state)
    return read_checkpoint(tmp_path / "c")


def test_counters_and_server_come_back(tmp_path: Path) -> None:
    before = checkpoint()
    after = stored(tmp_path, before)
    names = [field.name for field in dataclasses.fields(Checkpoint) if field.name != "server"]
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
    assert after.server.version == 9
    assert same_tensors(after.server.weights, before.server.weights)
    assert same_tensors(after.server.extra, before.server.extra)


def test_tasks_under_way_come_back(tmp_path: Path) -> None:
    tasks = (
        pending(5, NEW),
        pending(8, OLD, plan=None, kind="evaluate", options={}),
        pending(11, NEW, work=LocalWork(epochs=1, batch_size=4, lr=0.5, steps=3)),
        pending(12, {}, kind="query"),
    )
    after = stored(tmp_path, checkpoint(pending=tasks)).pending
    assert [(each.ticket, each.start_s) for each in after] == [(each.ticket, each.start_s) for each in tasks]
    for found, task in zip(after, tasks, strict=True):
        assert same_tensors(found.task.weights, task.task.weights)
        assert dataclasses.replace(found.task, weights={}) == dataclasses.replace(task.task, weights={})


def test_tasks_of_one_model_share_it_again(tmp_path: Path) -> None:
    """They must: what is sent down is packed once for each model, known by its identity."""
    tasks = tuple(pending(number, NEW if number % 2 else OLD) for number in range(6))
    after = stored(tmp_path, checkpoint(pending=tasks)).pending
    assert len({id(each.task.weights) for each in after}) == 2
    assert after[0].task.weights is after[2].task.weights


def test_a_model_is_stored_once_however_many_have_it(tmp_path: Path) -> None:
    sizes = []
    for tasks in (1, 50):
        write_checkpoint(tmp_path / "c", checkpoint(pending=tuple(pending(number, NEW) for number in range(tasks))))
        sizes.append((tmp_path / "c").stat().st_size)
    assert sizes[1] - sizes[0] < 50 * 600  # a line of JSON each; the model has 24,000 bytes


def test_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    state = checkpoint(pending=(pending(1, NEW), pending(2, OLD)))
    for name in "ab":
        write_checkpoint(tmp_path / name, state)
    write_checkpoint(tmp_path / "c", read_checkpoint(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ConfigError, match="is no checkpoint of a run"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (b'"next_round"', b'"text_round"'),
        (b'"ticket"', b'"wicket"'),
        (b'"model": "model0"', b'"model": "model9"'),
        (b'"lr"', b'"lx"'),
    ],
)
def test_what_is_no_such_state_is_one_clear_line(was: bytes, now: bytes, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", checkpoint(pending=(pending(1, OLD),)))
    content = (tmp_path / "c").read_bytes()
    was, now = (word.replace(b'"', b'\\"') for word in (was, now))
    assert was in content
    (tmp_path / "c").write_bytes(content.replace(was, now))
    with pytest.raises(ConfigError, match="is no checkpoint of a run"):
        read_checkpoint(tmp_path / "c")
