"""Does the operating system agree? Steps in processes of their own that may not map more memory than was planned.

RLIMIT_DATA bounds a process's private writable memory (heap and anonymous mappings, Linux 4.7 and newer). One process
runs the planned step and one the eager step. Each warms up with one step, because kernels compiled at first use and
thread stacks are no part of a step, gives free memory back, reads what it holds now (`VmData`), and goes on under

    limit = what it holds + (planned peak - resident bytes) + margin

since its resident bytes (parameters, optimizer state, batch) are in what it holds. The planned step has to survive.

Allocator settings: glibc keeps freed blocks of up to 32 MiB in its heap, which then fragments: a step that needs 235
MiB does not fit in 290. With `MALLOC_MMAP_THRESHOLD_=65536` every block from 64 KiB on is a mapping of its own and
goes back as soon as it is freed, so that bytes planned are bytes mapped. The price is page faults at every allocation:
steps take 1.4 to 3 times as long (measured; planned and eager alike), which is why only these processes run that
way. `MALLOC_ARENA_MAX=1` keeps threads from opening heaps of their own.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedhybrid.cli.subject import Subject
from fedhybrid.errors import FedHybridError
from fedhybrid.planner import Plan

__all__ = [
    "ALLOCATOR_SETTINGS",
    "STEPS",
    "HardLimit",
    "Outcome",
    "limit_problems",
    "planning_under_hard_limit",
    "under_hard_limit",
]

ALLOCATOR_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
STEPS = 5  # under the limit; the first one already allocates what all others do
_CHILD = "fedhybrid.cli.limited"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one process fared.

    Attributes:
        warm_base_bytes: What it held after one warm step (`VmData`).
        limit_bytes: RLIMIT_DATA of the steps that followed.
        survived: Whether all of them ran.
        death: What ended them otherwise.
    """

    warm_base_bytes: int
    limit_bytes: int
    survived: bool
    death: str | None


@dataclass(frozen=True, kw_only=True)
class HardLimit:
    """Planned and eager step under the same allowance."""

    margin_bytes: int
    planned: Outcome
    eager: Outcome


def limit_problems() -> list[str]:
    """Why this system cannot limit a process's memory; empty where it can."""
    needs = "--hard-limit needs Linux with glibc (RLIMIT_DATA, /proc/self/status, malloc_trim)"
    if not sys.platform.startswith("linux"):
        return [f"{needs}; this is {sys.platform}. Leave the option out; --measure checks the peak here."]
    if not Path("/proc/self/status").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        return [f"{needs}; one of them is missing here. Leave the option out; --measure checks the peak here."]
    return []


def under_hard_limit(subject: Subject, plan: Plan, *, margin_bytes: int) -> HardLimit:
    """Runs the planned step and the eager step, each in a process with a hard limit on its memory.

    Raises:
        FedHybridError: A process ended before it could run a step under its limit.
    """
    allowance_bytes = plan.peak_bytes - plan.resident_bytes + margin_bytes
    planned = {"what": "planned", "plan": plan.to_json()}
    return HardLimit(
        margin_bytes=margin_bytes,
        planned=_run(subject, planned, allowance_bytes=allowance_bytes, steps=STEPS),
        eager=_run(subject, {"what": "eager"}, allowance_bytes=allowance_bytes, steps=STEPS),
    )


def planning_under_hard_limit(subject: Subject, plan: Plan, *, margin_bytes: int) -> Outcome:
    """Captures, profiles and plans again for the plan's peak, in a process that may hold no more than that peak.

    Raises:
        FedHybridError: The process ended before it could plan under its limit.
    """
    allowance_bytes = plan.peak_bytes - plan.resident_bytes + margin_bytes
    request = {"what": "planning", "budget_bytes": plan.peak_bytes}
    return _run(subject, request, allowance_bytes=allowance_bytes, steps=1)


def _run(subject: Subject, what: dict[str, Any], *, allowance_bytes: int, steps: int) -> Outcome:
    """One child process. The limit is set inside it, after its warm step; a signal then counts as a death."""
    request = what | {
        "subject": dataclasses.asdict(subject),
        "threads": subject.threads or torch.get_num_threads(),
        "allowance_bytes": allowance_bytes,
        "steps": steps,
    }
    done = subprocess.run(
        [sys.executable, "-m", _CHILD],
        input=json.dumps(request),
        env=os.environ | ALLOCATOR_SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise FedHybridError(
            f"the process for the hard limit ended with code {done.returncode} before its step: {last}"
        )
    base, *rest = lines
    if not rest:
        return Outcome(**base, survived=False, death=f"the process ended with code {done.returncode}")
    return Outcome(**base, **rest[0])
