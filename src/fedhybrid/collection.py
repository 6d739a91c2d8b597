"""Python's cyclic garbage collector out of the way where it only costs time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_paused"]


@contextmanager
def collection_paused() -> Iterator[None]:
    """No automatic collection inside; afterwards as before.

    With torch's modules loaded a full collection walks a million objects, an eighth of a second each time. Importing
    and tracing make many objects that stay, so they set off several, which find nothing.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
