"""Memory on disk: a temporary file, mapped, for tensors that nothing reads for a while.

Tensors are copied into a slot and leave our memory at once (the pages are handed to the system, which writes them in
its own time); a slot can be asked for ahead, so that the disk works while the processor does.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, final

import torch
from torch import Tensor

from fedhybrid.codecs import empty_dense, flat_view
from fedhybrid.errors import ConfigError
from fedhybrid.units import format_bytes

__all__ = ["OffloadFile", "slot_bytes"]

_PAGE_BYTES = mmap.PAGESIZE
_IN_MEMORY = {"tmpfs", "ramfs"}
_BLOCK_BYTES = 2**20


def slot_bytes(nbytes: int) -> int:
    """Bytes of a slot that holds `nbytes`: whole pages, so that slots come and go alone.

    >>> slot_bytes(1) == slot_bytes(100) and slot_bytes(0) == 0
    True
    """
    return -(-nbytes // _PAGE_BYTES) * _PAGE_BYTES


@final
class OffloadFile:
    """A file of fixed size for tensors; it has no name, and is gone when it is closed or the process ends.

    Attributes:
        directory: Where it lies.
        nbytes: Its size.
    """

    def __init__(self, path: Path | None, nbytes: int) -> None:
        """Reserves the space.

        Args:
            path: A directory; None: the system's for temporary files, or another where that one is kept in memory.
            nbytes: At least 1.

        Raises:
            ConfigError: No such directory, or no space there.
        """
        if nbytes < 1:
            raise ConfigError(f"an offload file must have at least 1 byte, got {nbytes}")
        self.directory, self.nbytes = path or _disk_directory(), nbytes
        file = _reserved(self.directory, nbytes)
        self._file, self._map = file, mmap.mmap(file.fileno(), nbytes)
        self._bytes: Tensor | None = torch.frombuffer(self._map, dtype=torch.uint8)
        self._written: list[tuple[int, int]] = []
        self._closing = weakref.finalize(self, file.close)  # the mapping goes with its last reference

    def write(self, slot_offset: int, tensor: Tensor) -> None:
        """Copies a dense tensor into the slot that begins at `slot_offset`; allocates nothing."""
        begin, end = slot_offset, slot_offset + tensor.nbytes
        self._at(begin, end).copy_(flat_view(tensor).view(torch.uint8))
        self._let_go(begin, end)
        # What was written before has probably reached the disk by now and can leave the system's memory too.
        for earlier in self._written:
            self._drop_cached(*earlier)
        self._written = [(begin, end)]

    def prefetch(self, slot_offset: int, nbytes: int) -> None:
        """Asks the system to read a slot soon; returns at once."""
        if hasattr(mmap, "MADV_WILLNEED"):
            begin = slot_offset // _PAGE_BYTES * _PAGE_BYTES
            self._map.madvise(mmap.MADV_WILLNEED, begin, slot_offset + nbytes - begin)

    def read(
        self, slot_offset: int, nbytes: int, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """A new dense tensor with what was written at `slot_offset`; the slot keeps it."""
        found = empty_dense(shape, stride, dtype)
        assert found.nbytes == nbytes, f"{nbytes} bytes are no {dtype} tensor of shape {list(shape)}"
        begin, end = slot_offset, slot_offset + nbytes
        flat_view(found).view(torch.uint8).copy_(self._at(begin, end))
        self._let_go(begin, end)
        return found

    def close(self) -> None:
        """Gives the space back; the file cannot be used afterwards."""
        if self._bytes is not None:
            self._bytes = None
            self._map.close()
            self._closing()

    def __enter__(self) -> OffloadFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _at(self, begin: int, end: int) -> Tensor:
        assert self._bytes is not None, "the offload file is closed"
        assert 0 <= begin <= end <= self.nbytes, f"bytes {begin} to {end} are outside of a file of {self.nbytes}"
        return self._bytes[begin:end]

    def _let_go(self, begin: int, end: int) -> None:
        """Takes the slot's whole pages out of this process's memory; their contents stay in the file."""
        first, last = slot_bytes(begin), end // _PAGE_BYTES * _PAGE_BYTES
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._drop_cached(begin, end)

    def _drop_cached(self, begin: int, end: int) -> None:
        """Starts writing what is not on disk yet, and drops what is from the system's cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)


def _reserved(directory: Path, nbytes: int) -> IO[bytes]:
    """An unnamed file whose blocks exist: writing to a mapped hole on a full disk would kill the process."""
    if not directory.is_dir():
        raise ConfigError(f"the offload directory {str(directory)!r} does not exist; create it or name another")
    free_bytes = shutil.disk_usage(directory).free
    if nbytes > free_bytes:
        raise ConfigError(
            f"offloading needs {format_bytes(nbytes)} on disk, {str(directory)!r} has {format_bytes(free_bytes)} free. "
            "Name a directory on a larger disk, or use a larger budget."
        )
    try:
        file = tempfile.TemporaryFile(dir=directory, prefix="fedhybrid-offload-")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise ConfigError(f"cannot write to the offload directory {str(directory)!r}: {error.strerror}") from error
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)
        else:
            for begin in range(0, nbytes, _BLOCK_BYTES):
                file.write(bytes(min(_BLOCK_BYTES, nbytes - begin)))
            file.flush()
    except OSError as error:
        file.close()
        raise ConfigError(
            f"offloading needs {format_bytes(nbytes)} on disk, and {str(directory)!r} does not give them: "
            f"{error.strerror}. Name a directory on a larger disk, or use a larger budget."
        ) from error
    return file


def _disk_directory() -> Path:
    """The first usual place for temporary files that is not kept in memory; the very first if all are."""
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    on_disk = [path for path in candidates if os.access(path, os.W_OK) and not _is_in_memory(path)]
    return (on_disk or candidates)[0]


def _is_in_memory(path: Path) -> bool:
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False  # no such list on this system
    here = path.resolve()
    found = [(len(point), kind) for _, point, kind, *_ in mounts if here.is_relative_to(point)]
    return bool(found) and max(found)[1] in _IN_MEMORY
