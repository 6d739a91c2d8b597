"""A run's state between two rounds, as one file: tensors as safetensors, all else as JSON in that file's header.

One file means one atomic replacement: there is no moment at which tensors and counters belong to different rounds.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedhybrid.engine.files import write_atomically
from fedhybrid.errors import ConfigError
from fedhybrid.protocols import PolicyState, ServerState

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

_HEADER_KEY = "fedhybrid"  # one key only: safetensors keeps several in no fixed order
_WEIGHTS, _EXTRA = "weights/", "extra/"


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
    """

    next_round: int
    now_s: float
    wall_time_s: float
    rounds_length_bytes: int
    clients_length_bytes: int
    policy: PolicyState
    server: ServerState


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint at `path`; it is on disk when this returns."""
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in checkpoint.server.weights.items()}
    tensors |= {f"{_EXTRA}{name}": tensor for name, tensor in checkpoint.server.extra.items()}
    numbers = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name != "server"}
    header = {_HEADER_KEY: json.dumps(numbers, allow_nan=False)}
    write_atomically(path, save({name: t.contiguous() for name, t in tensors.items()}, metadata=header))


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`.

    Raises:
        ConfigError: The file is no checkpoint of a run.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            numbers = json.loads((stored.metadata() or {})[_HEADER_KEY])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        return Checkpoint(
            **numbers,
            server=ServerState(
                weights={n.removeprefix(_WEIGHTS): t for n, t in tensors.items() if n.startswith(_WEIGHTS)},
                extra={n.removeprefix(_EXTRA): t for n, t in tensors.items() if n.startswith(_EXTRA)},
            ),
        )
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is no checkpoint of a run ({error}); start again with another --out") from error
