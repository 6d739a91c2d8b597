"""A results note: numbers with versions, machine, settings and the command that printed them."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

import fedhybrid

__all__ = ["RESULTS", "machine", "note_name", "write_note"]

RESULTS = Path(__file__).parents[1] / "results"


def machine() -> dict[str, Any]:
    """What the numbers depend on, without names or paths of this machine."""
    return {
        "fedhybrid": fedhybrid.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def note_name(theme: str, hardware: str | None) -> str:
    """`<theme>_<hardware>_<yyyymm>`; hardware is made up of the processor's name where none is given."""
    words = re.sub(r"\(.*?\)|@.*|\b(cpu|processor)\b", " ", _processor().lower())
    found = "-".join(re.findall(r"[a-z0-9]+", words))[:40] or "cpu"
    return f"{theme}_{hardware or f'{found}-{os.cpu_count()}core'}_{time.strftime('%Y%m')}"


def write_note(name: str, *, title: str, command: str, settings: dict[str, Any], body: str) -> Path:
    """Writes `benchmarks/results/<name>.md`."""
    facts = "\n".join(f"- {key}: {value}" for key, value in (machine() | settings).items())
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text(f"# {title}\n\n```sh\n{command}\n```\n\n{facts}\n\n{body}\n")
    return path


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
