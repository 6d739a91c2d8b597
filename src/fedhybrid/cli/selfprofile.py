"""What `fedhybrid doctor --profile` does: measures this machine and writes its device profile."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fedhybrid.cli.output import notes
from fedhybrid.devices import DeviceProfile, load_profile
from fedhybrid.devices.measuring import Measured, Unmeasured, measure_machine, profile_text
from fedhybrid.errors import ConfigError

__all__ = ["check_request", "profile_object", "profile_table", "write_profile"]


def check_request(path: Path, unmeasured: Unmeasured, threads: int) -> None:
    """Refuses what could not be written, before a measurement of many seconds.

    Raises:
        ConfigError: All that is wrong at once.
    """
    problems = [
        f"--{key.replace('_', '-')} must be a positive number, got {value}"
        for key, value in asdict(unmeasured).items()
        if value is not None and not (math.isfinite(value) and value > 0)
    ]
    if threads < 1:
        problems.append(f"--threads must be at least 1, got {threads}")
    if path.suffix != ".toml":
        problems.append(f"--profile must name a file that ends in .toml, got {str(path)!r}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        problems.append(f"--profile {path}: there is no such folder, or it is one itself")
    if problems:
        raise ConfigError(problems)


def write_profile(path: Path, unmeasured: Unmeasured, threads: int) -> DeviceProfile:
    """Measures, writes, and reads the file back.

    Raises:
        ConfigError: The file cannot be written, or the system does not say how much memory there is.
    """
    memory_bytes = _memory_bytes()
    measured = _measure(notes(), threads)
    processor = _processor()
    text = profile_text(
        measured,
        name=path.stem,
        title=f"{processor}, {threads} thread(s), measured",
        processor=processor,
        memory_bytes=memory_bytes,
        torch_version=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
        unmeasured=unmeasured,
    )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--profile {path}: cannot be written ({error.strerror})") from error
    return load_profile(path)


def profile_table(profile: DeviceProfile) -> Table:
    """The rates of a profile for people."""
    table = Table(title=profile.title, title_justify="left", box=None, pad_edge=False)
    table.add_column("operators")
    table.add_column("GFLOP/s", justify="right")
    table.add_column("GB/s", justify="right")
    for kind, rate in profile.kinds.items():
        table.add_row(kind, f"{rate.flops_per_s / 1e9:.1f}", f"{rate.bytes_per_s / 1e9:.1f}")
    table.add_row("any, at least", f"{profile.op_overhead_s * 1e6:.1f} us", "")
    return table


def profile_object(profile: DeviceProfile) -> Mapping[str, Any]:
    """The profile as a JSON object."""
    return asdict(profile)


def _measure(console: Console, threads: int) -> Measured:
    if not console.is_terminal:
        return measure_machine(threads=threads, on_kind=lambda kind: console.print(f"measuring {kind}"))
    with console.status("measuring ...") as status:
        return measure_machine(threads=threads, on_kind=lambda kind: status.update(f"measuring {kind} ..."))


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError) as error:
        raise ConfigError("--profile: this system does not say how much memory it has") from error


def _processor() -> str:
    """Model name of the processor, or of the board where Linux names no processor."""
    for path, pattern in (("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"), ("/proc/device-tree/model", r"^([^\0]+)")):
        try:
            found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
