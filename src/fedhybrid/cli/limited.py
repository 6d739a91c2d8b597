"""The process behind `--hard-limit`: reads a request as JSON, warms up, limits itself, runs on, reports as JSON.

Writes one line before it sets the limit (what it holds, and the limit) and one after its steps, so that even a death
by signal can be told from a failure to get that far.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedhybrid.cli.subject import Built, Subject, build, capture, cross_entropy
from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.executor import TrainStep
from fedhybrid.executor.optimizer import torch_twin
from fedhybrid.planner import Plan

__all__ = ["held_bytes", "main", "run_limited"]


def main() -> None:
    """Reads standard input, reports to standard output; what models print goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.load(sys.stdin)

    def report(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    torch.set_num_threads(request["threads"])
    problems: list[str] = []
    built = build(Subject(**request["subject"]), problems)
    if built is None:
        raise ConfigError(problems)
    allowance_bytes = request["allowance_bytes"]
    if request["what"] == "planning":  # a budget counts the optimizer's state, of which there is none yet
        allowance_bytes += _state_bytes(built)
    run_limited(_MAKERS[request["what"]](built, request), allowance_bytes, request["steps"], report)


def run_limited(
    step: Callable[[], object], allowance_bytes: int, steps: int, report: Callable[[dict[str, Any]], None]
) -> None:
    """One warm step, then `steps` more with at most `allowance_bytes` above what the process holds by then."""
    step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    base_bytes = held_bytes()
    limit_bytes = base_bytes + allowance_bytes
    report({"warm_base_bytes": base_bytes, "limit_bytes": limit_bytes})
    before = resource.getrlimit(resource.RLIMIT_DATA)
    death = None
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, before[1]))
    try:
        for _ in range(steps):
            step()
    # torch's allocator and its kernels have no error class of their own, and capture passes theirs on as its own.
    except (RuntimeError, MemoryError, FedHybridError) as error:
        text = re.sub(r"\[enforce fail at [^]]*\] .*?\. ", "", " ".join(str(error).split()))
        death = f"{type(error).__name__}: {text}"
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    report({"survived": death is None, "death": death})


def held_bytes() -> int:
    """Private writable memory of this process, which RLIMIT_DATA bounds."""
    found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _planned_step(built: Built, request: dict[str, Any]) -> Callable[[], object]:
    step = TrainStep(capture(built, timed=False), Plan.from_json(request["plan"]))
    return lambda: step(*built.batch)


def _state_bytes(built: Built) -> int:
    states = [built.optimizer.init_state(p.detach().to("meta")) for p in built.model.parameters() if p.requires_grad]
    return sum(tensor.nbytes for state in states for tensor in state.values())


def _eager_step(built: Built, request: dict[str, Any]) -> Callable[[], object]:
    twin = torch_twin(built.optimizer, built.model.parameters())
    assert twin is not None
    x, y = built.batch

    def step() -> None:
        cross_entropy(built.model(x), y).backward()  # type: ignore[no-untyped-call]
        twin.step()
        twin.zero_grad(set_to_none=True)

    return step


def _planning(built: Built, request: dict[str, Any]) -> Callable[[], object]:
    """Not a step, but all that comes before the first: capture, profile, plan."""
    return lambda: capture(built).plan(request["budget_bytes"])


_MAKERS = {"eager": _eager_step, "planned": _planned_step, "planning": _planning}


if __name__ == "__main__":
    main()
