"""The files in a run's folder. Nothing that a run has written is ever lost silently; one process at a time writes."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from safetensors.torch import save

from fedhybrid.engine.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedhybrid.engine.files import flush_to_disk, truncate_to, write_atomically
from fedhybrid.engine.planfiles import INFEASIBLE, read_infeasible, read_plan
from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientRecord, RoundRecord, Summary, append_jsonl, as_json, read_jsonl, read_record
from fedhybrid.tree import Tensors

__all__ = ["LOCK", "RunFolder"]

LOCK = ".lock"
_LOCK_PATIENCE_S = 5.0  # a killed run's workers need a moment to notice


@final
class RunFolder:
    """The files of one run; `claim_folders` has been called for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rounds, self._clients = path / "rounds.jsonl", path / "clients.jsonl"
        self._checkpoint, self._summary = path / "checkpoint.safetensors", path / "summary.json"
        self._model = path / "model.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out; the lock goes with the process, however it ends.

        Raises:
            ConfigError: Another process is writing into the folder.
        """
        with (self.path / LOCK).open("a") as lock:
            for waited in range(int(_LOCK_PATIENCE_S * 10) + 1):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if waited >= _LOCK_PATIENCE_S * 10:
                        raise ConfigError(f"another process is running in {self.path}; wait or stop it") from None
                    time.sleep(0.1)
            yield

    def check(self) -> None:
        """Makes sure that the run in the folder, if there is one, can go on; changes nothing.

        Raises:
            ConfigError: A file is damaged, or files do not belong together.
        """
        self._checked()
        problems: list[str] = []
        for path in sorted((self.path / "plans").glob("*.json")):
            try:
                read_plan(path)
            except ConfigError as error:
                problems += error.problems
        try:
            read_infeasible(self.path / INFEASIBLE)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    def restore(self) -> Checkpoint | None:
        """The last checkpoint, None before the first; record files are cut back to what belongs to it.

        Raises:
            ConfigError: As `check` says it of checkpoint and records; then nothing has been changed.
        """
        checkpoint, lengths = self._checked()
        for path, length_bytes in zip((self._rounds, self._clients), lengths, strict=True):
            truncate_to(path, length_bytes)
        return checkpoint

    def reopen(self, state: Checkpoint) -> None:
        """Takes away the mark of a finished run, as more rounds are to come; `state` is where they go on from."""
        self._summary.unlink(missing_ok=True)
        if not self._checkpoint.is_file():
            self.store(state)

    def is_finished(self, rounds: int) -> bool:
        """Whether the run is complete, its model as the checkpoint has it.

        Raises:
            ConfigError: As `check`.
        """
        if not self._summary.is_file() or read_record(Summary, self._summary).rounds != rounds:
            return False
        checkpoint, _ = self._checked()
        return (
            checkpoint is not None
            and self._model.is_file()
            and self._model.read_bytes() == _stored(checkpoint.server.weights)
        )

    def _checked(self) -> tuple[Checkpoint | None, tuple[int, int]]:
        """The checkpoint, and how much of the rounds' and the clients' records belongs to it."""
        if self._summary.is_file():
            read_record(Summary, self._summary)
        if not self._checkpoint.is_file():
            # The first checkpoint comes before the first record.
            if self._summary.is_file() or read_jsonl(RoundRecord, self._rounds):
                raise ConfigError(
                    f"{self._checkpoint} is missing, so the run cannot go on; put it back, or start again with "
                    "another --out"
                )
            return None, (0, 0)
        checkpoint = read_checkpoint(self._checkpoint)
        lengths = (checkpoint.rounds_length_bytes, checkpoint.clients_length_bytes)
        problems: list[str] = []
        files: tuple[tuple[Path, type[Any]], ...] = ((self._rounds, RoundRecord), (self._clients, ClientRecord))
        for (path, cls), length_bytes in zip(files, lengths, strict=True):
            if (path.stat().st_size if path.exists() else 0) < length_bytes:
                problems.append(f"{path} has lost lines that the checkpoint counts on; start again with another --out")
                continue
            try:
                read_jsonl(cls, path, length_bytes)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return checkpoint, lengths

    def append(self, record: RoundRecord, clients: list[ClientRecord]) -> tuple[int, int]:
        """Stores a round's records; returns the new lengths of `rounds.jsonl` and `clients.jsonl` in bytes."""
        clients_length_bytes = append_jsonl(self._clients, clients)
        return append_jsonl(self._rounds, [record]), clients_length_bytes

    def store(self, checkpoint: Checkpoint) -> None:
        """Makes the state after a round the one to go on from; all that it counts on is on disk when this returns."""
        for path in (self._rounds, self._clients):
            if path.is_file():
                flush_to_disk(path)
        write_checkpoint(self._checkpoint, checkpoint)

    def rounds(self) -> list[RoundRecord]:
        """All rounds so far."""
        return read_jsonl(RoundRecord, self._rounds)

    def clients(self) -> list[ClientRecord]:
        """All tasks so far."""
        return read_jsonl(ClientRecord, self._clients)

    def finish(self, weights: Tensors, summary: Summary) -> None:
        """Stores the final model and then, which marks the run as finished, the summary."""
        write_atomically(self._model, _stored(weights))
        write_atomically(self._summary, as_json(summary) + "\n")


def _stored(weights: Tensors) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in weights.items()})
