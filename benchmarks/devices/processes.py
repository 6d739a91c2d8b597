"""What processes take, as Linux tells it in /proc: memory now, the highest since a reset, processor seconds."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Memory",
    "anon_peak",
    "by_mapping",
    "cpu_s",
    "descendants",
    "memory",
    "peak_bytes",
    "reset_peak",
    "started_s",
]

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 0.003


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Physical memory of a process.

    Attributes:
        rss_bytes: All of it, pages of shared libraries included.
        anon_bytes: What no file stands behind: this process's own.
    """

    rss_bytes: int
    anon_bytes: int


def memory(pid: int) -> Memory:
    """Now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return Memory(rss_bytes=_size(status, "VmRSS"), anon_bytes=_size(status, "RssAnon"))


def reset_peak(pid: int) -> None:
    """The kernel's peak begins anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """Largest physical memory since the last reset, as the kernel itself noted it."""
    return _size(Path(f"/proc/{pid}/status").read_text(), "VmHWM")


def cpu_s(pid: int) -> float:
    """Processor seconds so far, in steps of 10 ms."""
    behind_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(behind_name[11]) + int(behind_name[12])) / _TICKS_A_SECOND


def started_s(pid: int) -> float:
    """When it was started, on the clock of CLOCK_BOOTTIME, in steps of 10 ms."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / _TICKS_A_SECOND


def descendants(pid: int) -> dict[int, str]:
    """Processes below this one, and the name of the script or program that each runs."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            other = int(folder.name)
            parents[other] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            names[other] = next((Path(w).name for w in words if "flower" in w or "flwr" in w), Path(words[0]).name)
    found: dict[int, str] = {}
    rest = [pid]
    while rest:
        above = rest.pop()
        for other in [p for p, parent in parents.items() if parent == above]:
            found[other] = names[other]
            rest.append(other)
    return found


@contextlib.contextmanager
def anon_peak(pid: int) -> Iterator[list[int]]:
    """The list's only number is the largest `anon_bytes` seen inside, sampled every 3 ms."""
    seen, stopped = [memory(pid).anon_bytes], threading.Event()

    def look() -> None:
        while not stopped.wait(_SAMPLE_S):
            with contextlib.suppress(OSError):
                seen[0] = max(seen[0], memory(pid).anon_bytes)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stopped.set()
        thread.join()


def by_mapping(pid: int) -> dict[str, int]:
    """Physical memory by what stands behind it: each large library, other files, heap, other own memory, stacks."""
    found: dict[str, int] = {}
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            words = line.split(maxsplit=5)
            name = (
                Path(words[5]).name if len(words) > 5 and words[5].startswith("/") else (words[5:] or ["anonymous"])[0]
            )
        elif line.startswith("Rss:"):
            found[name] = found.get(name, 0) + int(line.split()[1]) * 1024
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def wait_idle(pid: int, seconds: float) -> float:
    """Processor seconds that it takes a second while nothing is asked of it."""
    before, began_s = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(pid) - before) / (time.monotonic() - began_s)


def _size(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, f"the system does not tell {name}"
    return int(found[1]) * 1024
