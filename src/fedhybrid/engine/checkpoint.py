"""A run's state between two rounds, as one file.

One file means one atomic replacement: there is no moment at which tensors and counters belong to different rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhybrid.engine.bundle import pack_bundle, read_bundle, task_as_json, task_from_json
from fedhybrid.engine.driver import PendingTask
from fedhybrid.engine.files import write_atomically
from fedhybrid.errors import ConfigError
from fedhybrid.protocols import PolicyState, ServerState
from fedhybrid.tree import Tensors

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

_WEIGHTS, _EXTRA, _MODEL = "weights", "extra", "model"
_APART = ("server", "pending")  # what is not stored as it is


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that the next round depends on.

    Attributes:
        next_round: The round to go on with.
        now_s: The virtual clock.
        wall_time_s: Real seconds spent so far.
        rounds_length_bytes: How much of `rounds.jsonl` belongs to this state; later lines will be written again.
        clients_length_bytes: The same for `clients.jsonl`.
        policy: The policy's state.
        server: The server's tensors.
        selections: How many times a policy has chosen, which is what its rounds are counted by.
        next_ticket: Number of the next task.
        pending: Tasks under way, in asynchronous runs.
        client_states: For each client that has kept something, the number of its file.
    """

    next_round: int
    now_s: float
    wall_time_s: float
    rounds_length_bytes: int
    clients_length_bytes: int
    policy: PolicyState
    server: ServerState
    selections: int = 0
    next_ticket: int = 0
    pending: tuple[PendingTask, ...] = ()
    client_states: Mapping[str, int] = field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint at `path`; it is on disk when this returns."""
    groups: dict[str, Tensors] = {_WEIGHTS: checkpoint.server.weights, _EXTRA: checkpoint.server.extra}
    models: dict[int, str] = {}
    pending = []
    for each in checkpoint.pending:
        model = models.setdefault(id(each.task.weights), f"{_MODEL}{len(models)}")
        groups[model] = each.task.weights
        told = task_as_json(each.task)
        pending.append({"ticket": each.ticket, "start_s": each.start_s, "model": model, "task": told})
    header = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name not in _APART}
    header |= {"pending": pending, "version": checkpoint.server.version}
    write_atomically(path, pack_bundle(header, groups))


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`.

    Raises:
        ConfigError: The file is no checkpoint of a run.
    """
    header, groups = read_bundle(path)
    try:
        version, pending = header.pop("version"), header.pop("pending")
        return Checkpoint(
            **header,
            server=ServerState(weights=groups[_WEIGHTS], extra=groups[_EXTRA], version=version),
            pending=tuple(_pending(each, groups) for each in pending),
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no checkpoint of a run ({error}); start again with another --out") from error


def _pending(stored: Mapping[str, Any], groups: Mapping[str, Tensors]) -> PendingTask:
    task = task_from_json(stored["task"], groups[stored["model"]])
    return PendingTask(ticket=stored["ticket"], start_s=stored["start_s"], task=task)
