"""What `fedhybrid doctor` looks at: versions, memory, compiler, and one real step."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhybrid import __version__
from fedhybrid.executor import SGD, compile_step
from fedhybrid.units import format_bytes

__all__ = ["Finding", "check_machine"]

SUPPORTED_TORCH = ((2, 11), (2, 13))
TOLERANCE_RATIO = 0.01  # design rule: planned and measured peak agree within 1 %


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the check-up; `ok` is False only where training would not work as promised."""

    name: str
    found: str
    ok: bool = True


def check_machine() -> list[Finding]:
    """All findings, the real step last."""
    return [
        Finding(name="fedhybrid", found=__version__),
        Finding(name="python", found=f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _torch(),
        Finding(name="threads", found=f"{torch.get_num_threads()} for torch, {os.cpu_count()} processors"),
        _memory(),
        _compiler(),
        *_real_step_or_why_not(),
    ]


def _torch() -> Finding:
    oldest, newest = SUPPORTED_TORCH
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    supported = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]} are supported"
    return Finding(name="torch", found=f"{torch.__version__} ({supported})", ok=oldest <= (major, minor) <= newest)


def _memory() -> Finding:
    try:
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        found = f"{format_bytes(os.sysconf('SC_PHYS_PAGES') * page_bytes)} in all"
    except (AttributeError, OSError, ValueError):
        return Finding(name="memory", found="this system does not say")
    with suppress(OSError, ValueError):  # not on macOS
        found += f", {format_bytes(os.sysconf('SC_AVPHYS_PAGES') * page_bytes)} free now"
    return Finding(name="memory", found=found)


def _compiler() -> Finding:
    names = [name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name]
    path = next((path for name in names if (path := shutil.which(name))), None)
    return Finding(name="C compiler", found=path or "none; nothing here needs one")


def _real_step_or_why_not() -> list[Finding]:
    try:
        return _real_step()
    except Exception as error:  # a check-up reports what breaks, whatever it is
        return [Finding(name="planned = measured", found=f"{type(error).__name__}: {error}", ok=False)]


def _real_step() -> list[Finding]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    batch = (torch.randn(16, 3, 16, 16), torch.randint(10, (16,)))

    def loss_of(output: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(output, y)

    step = compile_step(model, loss_of, batch, optimizer=SGD(lr=0.05, momentum=0.9), budget="80%")
    measured = step.measure()
    agree = abs(step.plan.peak_bytes - measured.peak_bytes) <= TOLERANCE_RATIO * measured.peak_bytes
    peaks = (
        f"planned {step.plan.peak_bytes:,} bytes, measured {measured.peak_bytes:,}, eager {measured.eager_peak_bytes:,}"
    )
    return [
        Finding(name="planned = measured", found=peaks, ok=agree and step.mode == "program"),
        Finding(
            name="same as eager",
            found="bit-identical" if measured.bit_identical else "differs",
            ok=measured.bit_identical,
        ),
    ]
