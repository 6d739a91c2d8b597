"""Arrays that are costly to make, made once and mapped from a file afterwards, so that processes share their pages.

The folder is the one that FEDHYBRID_CACHE names, else `fedhybrid` in the user's cache folder. A file's name holds the
length and a checksum of what it was made from: a source that changes is worked on anew, and old files do no harm.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["cache_folder", "mapped"]


def cache_folder() -> Path:
    """Where made arrays are kept; need not exist.

    Raises:
        RuntimeError: Nothing names one and the user has no home folder.
    """
    if own := os.environ.get("FEDHYBRID_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "fedhybrid"


def mapped(
    name: str, source: Path, shape: tuple[int, ...], make: Callable[[], NDArray[np.uint8]], *, maker: str
) -> NDArray[np.uint8]:
    """What `make()` gives, mapped from the cache; made if it is not there yet.

    The array can be written to without changing the file (its pages are copied then). Where the cache folder cannot be
    written, the array is made in memory, each time.

    Args:
        name: How the file's name begins.
        source: What the array is made from.
        shape: Of the array; a stored one of another shape is made again.
        make: Makes the array.
        maker: What else the array depends on, such as the version of a decoder.
    """
    try:
        path = cache_folder() / f"{name}-{_fingerprint(source, maker)}.npy"
    except RuntimeError:  # no home folder
        return make()
    stored = _open(path, shape)
    if stored is None:
        made = make()
        try:
            _store(path, made)
        except OSError:
            return made
        stored = _open(path, shape)
        if stored is None:
            return made
    return stored


def _fingerprint(source: Path, maker: str) -> str:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(maker.encode())
    return f"{source.stat().st_size}-{digest.hexdigest()[:16]}"


def _open(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The stored array, or None where it is missing, cut short or of another shape."""
    try:
        stored = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return stored if stored.shape == shape and stored.dtype == np.uint8 else None


def _store(path: Path, array: NDArray[np.uint8]) -> None:
    """Writes the array beside its place and moves it there, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as file:
        try:
            np.save(file, array)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise
