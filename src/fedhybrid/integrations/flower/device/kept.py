"""What a client keeps between its tasks, on its own disk: it is never sent, and a restart does not lose it."""

from __future__ import annotations

from pathlib import Path
from typing import final

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedhybrid.engine.bundle import in_own_memory
from fedhybrid.engine.files import write_atomically
from fedhybrid.tree import Tensors

__all__ = ["KeptInMemory", "KeptOnDisk"]


@final
class KeptInMemory:
    """Implements `node.Kept` for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensors] = {}

    def begin(self, accepted: str, stored: str) -> Tensors | None:
        """See `Kept`."""
        self._kept = {key: state for key, state in self._kept.items() if key in (accepted, stored)}
        return self._kept.get(accepted) if accepted else {}

    def keep(self, key: str, state: Tensors) -> None:
        """See `Kept`."""
        self._kept[key] = state


@final
class KeptOnDisk:
    """Implements `node.Kept` with one file for each task whose state may still count: hardly ever more than three."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def begin(self, accepted: str, stored: str) -> Tensors | None:
        """See `Kept`; a file that is damaged is as good as none."""
        wanted = {self._path(key) for key in (accepted, stored) if key}
        for path in self._folder.glob("*.safetensors"):
            if path not in wanted:
                path.unlink(missing_ok=True)
        try:
            return load_file(self._path(accepted)) if accepted else {}
        except (OSError, SafetensorError):
            return None

    def keep(self, key: str, state: Tensors) -> None:
        """See `Kept`; nothing is kept as a file, too, which says that it is not lost."""
        write_atomically(self._path(key), save(in_own_memory(state)))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"
