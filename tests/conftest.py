"""One intra-op thread: tests run beside each other, and bit-identity is meant at equal thread counts."""

from __future__ import annotations

import gc

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_not_walked_again() -> None:
    """Preparing a step collects garbage before it measures bytes, and walks every object of the process to do so.

    That takes a fifth of a second after the import of torch, more with every test module, and was most of the time of
    the small tests. What is alive before a module is not walked in it or later.
    """
    gc.collect()
    gc.freeze()
