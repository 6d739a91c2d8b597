"""A run's folder: who may write into it, and the files in it.

Nothing that a run has written is ever lost silently: a folder with a run in it is refused unless `resume` is asked for
and the configuration is the same (more rounds may be asked for), and one process at a time may write.
"""

from __future__ import annotations

import fcntl
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

import tomli_w
from safetensors.torch import save

from fedhybrid.engine.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedhybrid.engine.files import TEMPORARY_SUFFIX, append_durably, truncate_to, write_atomically
from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientRecord, RoundRecord, Summary, as_json, from_json
from fedhybrid.tree import Tensors

__all__ = ["RunFolder", "claim_folder"]

R = TypeVar("R")

_LOCK = ".lock"
_LOCK_PATIENCE_S = 5.0  # a killed run's workers need a moment to notice
_MAY_GROW = ("rounds",)


def claim_folder(path: Path, config: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder and stores the configuration in it, or checks that the run in it may go on.

    Raises:
        ConfigError: The folder holds something else, a run and `resume` is False, or a run of another configuration.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {path} is a file; give a folder")
    stored = path / "config.toml"
    if stored.is_file():
        if not resume:
            state = "a finished run" if (path / "summary.json").is_file() else "an unfinished run"
            raise ConfigError(
                f"--out {path} holds {state} already; add --resume to go on with it, or give another folder"
            )
        changed = sorted(_differences(tomllib.loads(stored.read_text()), config))
        if changed:
            raise ConfigError(
                [
                    f"--resume: {key} was {was!r} when the run in {path} was begun, now it is {now!r}"
                    for key, was, now in changed
                ]
            )
    elif path.is_dir() and any(p.name != _LOCK and p.suffix != TEMPORARY_SUFFIX for p in path.iterdir()):
        raise ConfigError(f"--out {path} is not empty and holds no run; give another folder")
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(stored, tomli_w.dumps(config))


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in was.keys() | now.keys():
        before, after = was.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after and not (f"{prefix}{key}" in _MAY_GROW and (before or 0) < (after or 0)):
            yield f"{prefix}{key}", before, after


@final
class RunFolder:
    """The files of one run; `claim_folder` has been called for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rounds, self._clients = path / "rounds.jsonl", path / "clients.jsonl"
        self._checkpoint, self._summary = path / "checkpoint.safetensors", path / "summary.json"
        self._lengths = (0, 0)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out; the lock goes with the process, however it ends.

        Raises:
            ConfigError: Another process is writing into the folder.
        """
        with (self.path / _LOCK).open("w") as lock:
            for waited in range(int(_LOCK_PATIENCE_S * 10) + 1):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if waited >= _LOCK_PATIENCE_S * 10:
                        raise ConfigError(f"another process is running in {self.path}; wait or stop it") from None
                    time.sleep(0.1)
            yield

    def restore(self) -> Checkpoint | None:
        """The last checkpoint, None before the first; record files are cut back to what belongs to it.

        The mark of a finished run goes, as more rounds are to come.

        Raises:
            ConfigError: A record file is shorter than the checkpoint says.
        """
        self._summary.unlink(missing_ok=True)
        checkpoint = read_checkpoint(self._checkpoint) if self._checkpoint.is_file() else None
        self._lengths = (checkpoint.rounds_length_bytes, checkpoint.clients_length_bytes) if checkpoint else (0, 0)
        for path, length_bytes in zip((self._rounds, self._clients), self._lengths, strict=True):
            if not truncate_to(path, length_bytes):
                raise ConfigError(
                    f"{path} has lost lines that the checkpoint counts on; start again with another --out"
                )
        return checkpoint

    def append(self, record: RoundRecord, clients: list[ClientRecord]) -> tuple[int, int]:
        """Stores a round's records; returns the new lengths of `rounds.jsonl` and `clients.jsonl` in bytes."""
        clients_length_bytes = append_durably(self._clients, [as_json(client) for client in clients])
        return append_durably(self._rounds, [as_json(record)]), clients_length_bytes

    def store(self, checkpoint: Checkpoint) -> None:
        """Makes the state after a round the one to go on from."""
        write_checkpoint(self._checkpoint, checkpoint)

    def rounds(self) -> list[RoundRecord]:
        """All rounds so far."""
        return _whole_lines(RoundRecord, self._rounds)

    def clients(self) -> list[ClientRecord]:
        """All tasks so far."""
        return _whole_lines(ClientRecord, self._clients)

    def finish(self, weights: Tensors, summary: Summary) -> None:
        """Stores the final model and then, which marks the run as finished, the summary."""
        write_atomically(self.path / "model.safetensors", save({n: t.contiguous() for n, t in weights.items()}))
        write_atomically(self._summary, as_json(summary) + "\n")


def _whole_lines(cls: type[R], path: Path) -> list[R]:
    """The records of a file that may still be written, or whose writer was killed: a torn last line is left out."""
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [from_json(cls, line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)]
