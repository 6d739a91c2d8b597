"""What clients keep between their tasks, one file a client, in step with the run's checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import final

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedhybrid.engine.bundle import in_own_memory
from fedhybrid.engine.files import TEMPORARY_SUFFIX, write_atomically
from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors

__all__ = ["ClientStates"]

_NAME = re.compile(r"(\d+)\.(\d+)\.safetensors")


@final
class ClientStates:
    """Reads a client's state when it is asked for, and writes those that have changed at each checkpoint.

    A file is called `<client>.<number>.safetensors` and never written twice; the checkpoint says which number counts.
    So a run that is killed between the two goes on with the state that belongs to its checkpoint.
    """

    def __init__(self, folder: Path, numbers: Mapping[str, int]) -> None:
        """`numbers` is what the checkpoint says: for each client that has a state, its file's number."""
        self._folder = folder
        self._numbers = {int(client): number for client, number in numbers.items()}
        self._changed: dict[int, Tensors] = {}
        self._replaced: list[Path] = []
        self._next = 1 + max(self._numbers.values(), default=-1)

    def __getitem__(self, client: int) -> Tensors:
        """The client's state; empty where it has none.

        Raises:
            ConfigError: Its file is missing or damaged.
        """
        if client in self._changed:
            return self._changed[client]
        return self.stored(client)

    @property
    def known(self) -> list[int]:
        """Clients that have kept something, ascending."""
        return sorted(self._numbers.keys() | self._changed.keys())

    def _read(self, client: int) -> Tensors:
        path = self._path(client)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{path}, which client {client} goes on from, cannot be read ({error}); put it back, or start again "
                "with another --out"
            ) from error

    def stored(self, client: int) -> Tensors:
        """The client's state at the last checkpoint; empty where it had none.

        Raises:
            ConfigError: Its file is missing or damaged.
        """
        return self._read(client) if client in self._numbers else {}

    def __setitem__(self, client: int, state: Tensors) -> None:
        self._changed[client] = state

    def write(self) -> dict[str, int]:
        """Stores what has changed; returns what the next checkpoint must say."""
        if self._changed:
            self._folder.mkdir(exist_ok=True)
        for client, state in sorted(self._changed.items()):
            if client in self._numbers:
                self._replaced.append(self._path(client))
            self._numbers[client] = self._next
            write_atomically(self._path(client), save(in_own_memory(state)))
        self._next += bool(self._changed)
        self._changed.clear()
        return {str(client): number for client, number in sorted(self._numbers.items())}

    def tidy(self) -> None:
        """Takes away the files that no checkpoint names; to be called after it is stored."""
        for path in self._replaced:
            path.unlink(missing_ok=True)
        self._replaced.clear()

    def clear_left_overs(self) -> None:
        """Takes away what a killed process wrote after the checkpoint."""
        if not self._folder.is_dir():
            return
        for name in os.listdir(self._folder):
            match = _NAME.fullmatch(name)
            known = match and self._numbers.get(int(match[1])) == int(match[2])
            if not known and (match or name.endswith(TEMPORARY_SUFFIX)):
                (self._folder / name).unlink()

    def _path(self, client: int) -> Path:
        return self._folder / f"{client}.{self._numbers[client]}.safetensors"
