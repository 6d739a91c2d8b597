"""A measured machine as a device profile in TOML."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import tomli_w

from fedhybrid.devices.measuring.machine import Measured
from fedhybrid.opwork import OP_KINDS

__all__ = ["DEFAULTS", "Unmeasured", "profile_text"]


# What is written where nothing is given: the figures of the profile `laptop`, with its sources.
DEFAULTS = {
    "uplink_bytes_per_s": 4.365e6,
    "downlink_bytes_per_s": 9.875e6,
    "watts_compute": 22.0,
    "joules_per_byte_up": 2.296e-6,
    "joules_per_byte_down": 1.109e-6,
}


@dataclass(frozen=True, kw_only=True)
class Unmeasured:
    """Figures of a profile that no program can measure from inside a machine; None for the default of `DEFAULTS`.

    Attributes:
        uplink_bytes_per_s: To the server.
        downlink_bytes_per_s: From the server.
        watts_compute: Joules per second of compute above idle.
        joules_per_byte_up: Joules that the radio takes to send one byte.
        joules_per_byte_down: Joules that the radio takes to receive one byte.
    """

    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None
    watts_compute: float | None = None
    joules_per_byte_up: float | None = None
    joules_per_byte_down: float | None = None


def profile_text(
    measured: Measured,
    *,
    name: str,
    title: str,
    processor: str,
    memory_bytes: int,
    torch_version: str,
    date: str,
    unmeasured: Unmeasured,
) -> str:
    """The profile, as `load_profile` reads it.

    Args:
        measured: What the machine did.
        name: Short name of the profile.
        title: For reports.
        processor: Model name, for the sources.
        memory_bytes: All memory of the machine.
        torch_version: What measured, for the sources.
        date: When, as YYYY-MM-DD, for the sources.
        unmeasured: Network and energy, where known.
    """
    given = {name: value for name, value in asdict(unmeasured).items() if value is not None}
    how = f"measured by fedhybrid doctor on {date}, torch {torch_version}, {processor}, {measured.threads} thread(s)"
    return tomli_w.dumps(
        {
            "name": name,
            "title": title,
            "sources": [
                f"kinds: {how}: medians of real operators, two rates a kind fitted to them",
                f"op_overhead_s: {how}: median of operators on four numbers",
                f"peak.flops_per_s: {how}: the best rate of any operator",
                f"peak.bytes_per_s: {how}: copying 64 MiB, read plus written",
                "memory: what the operating system reports",
                *(f"{key}: {_origin(key in given)}" for key in DEFAULTS),
            ],
            "memory_bytes": memory_bytes,
            "op_overhead_s": _rounded(measured.op_overhead_s),
            **DEFAULTS,
            **given,
            "peak": {
                "flops_per_s": _rounded(measured.peak_flops_per_s),
                "bytes_per_s": _rounded(measured.peak_bytes_per_s),
            },
            "kinds": {
                kind: {
                    "flops_per_s": _rounded(measured.kinds[kind].flops_per_s),
                    "bytes_per_s": _rounded(measured.kinds[kind].bytes_per_s),
                }
                for kind in OP_KINDS
            },
        }
    )


def _origin(given: bool) -> str:
    if given:
        return "given to fedhybrid doctor by its user"
    return "not measured: assumption of this project, the figure of the profile laptop (see its sources)"


def _rounded(figure: float) -> float:
    """Four digits: more would claim what no clock on a shared machine can tell."""
    return float(f"{figure:.4g}")
