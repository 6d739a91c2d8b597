"""Keeping what was freed: new pages are asked for once, not for every block again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from fedhybrid.engine.footprint import keep_freed_memory

{keep}
for _ in range(16):  # the heap grows first
    torch.zeros(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.zeros(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: str, **variables: str) -> int:
    """Of eight blocks of 64 MiB, each freed before the next, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", CODE.format(keep=keep)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_was_freed_is_used_again() -> None:
    before = page_faults("")
    assert before >= 8 * 32, "pages of 2 MiB at most"
    assert page_faults("keep_freed_memory()") < before / 10
    assert page_faults("keep_freed_memory()", MALLOC_ARENA_MAX="2") >= 8 * 32, "whoever sets these knows better"
