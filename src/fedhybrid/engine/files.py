"""Writing so that a process killed at any moment leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["TEMPORARY_SUFFIX", "flush_to_disk", "truncate_to", "write_atomically"]

TEMPORARY_SUFFIX = ".tmp"  # files of this ending are left-overs of a killed process and mean nothing


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replaces the file at `path` by `content`, which is on disk when this returns."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with temporary.open("wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


def truncate_to(path: Path, length_bytes: int) -> bool:
    """Cuts a file to its first `length_bytes`; False if it is shorter than that (a missing file has length 0)."""
    found_bytes = path.stat().st_size if path.exists() else 0
    if found_bytes > length_bytes:
        os.truncate(path, length_bytes)
    return found_bytes >= length_bytes


def flush_to_disk(path: Path) -> None:
    """What has been written to the file so far is on disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
