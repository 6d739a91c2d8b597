"""What holds for all tests.

One intra-op thread: tests run beside each other, and bit-identity is meant at equal thread counts.

Properties are tried on the same examples each time, so that a change passes or fails by itself; `make test-all` draws
new ones (the profile "search"). An example has no time limit: how busy a machine is says nothing of a change.
"""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("gate", settings.get_profile("search"), derandomize=True)
settings.load_profile("gate")


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_not_walked_again() -> None:
    """Preparing a step collects garbage before it measures bytes, and walks every object of the process to do so.

    That takes a fifth of a second after the import of torch, more with every test module, and was most of the time of
    the small tests. What is alive before a module is not walked in it or later.
    """
    gc.collect()
    gc.freeze()
