"""What a device can do: memory, seconds per operator kind, bandwidth, energy.

A profile is a TOML file. Per operator kind it needs how fast the device computes and moves memory, either directly
(`[kinds.conv]`, measured rates) or as a share of the device's peaks (`[peak]` and `[efficiency_ratio]`); a direct entry
wins. Energy figures may be left out, but only all of them. Every file says in `sources` where each figure comes from.
"""

from __future__ import annotations

import dataclasses
import reprlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedhybrid.errors import ConfigError
from fedhybrid.opwork import OP_KINDS, OpWork

__all__ = ["DeviceProfile", "KindRate", "parse_profile", "profile_table", "read_profile"]


@dataclass(frozen=True, kw_only=True)
class KindRate:
    """How fast a device runs one kind of operator."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One kind of device.

    Attributes:
        name: Short name, as in `DEVICES`.
        title: For reports.
        sources: Where each figure comes from, in words with links.
        memory_bytes: All memory that the device has.
        kinds: Rates for each of `opwork.OP_KINDS`.
        op_overhead_s: Seconds that any operator costs however little it does.
        uplink_bytes_per_s: To the server.
        downlink_bytes_per_s: From the server.
        watts_compute: Joules per second of compute, above what the idle device draws; None where the profile does
            not say.
        joules_per_byte_up: Joules that the radio takes to send one byte, or None.
        joules_per_byte_down: Joules that the radio takes to receive one byte, or None.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    memory_bytes: int
    kinds: Mapping[str, KindRate]
    op_overhead_s: float
    uplink_bytes_per_s: float
    downlink_bytes_per_s: float
    watts_compute: float | None = None
    joules_per_byte_up: float | None = None
    joules_per_byte_down: float | None = None

    def op_time_s(self, work: OpWork) -> float:
        """Seconds for one operator: overhead plus the larger of compute time and memory time.

        Source: S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 2009, for the larger of the two.
        """
        rate = self.kinds[work.kind]
        return self.op_overhead_s + max(work.flops / rate.flops_per_s, work.moved_bytes / rate.bytes_per_s)

    def energy_j(self, compute_s: float, bytes_up: int, bytes_down: int) -> float:
        """Joules above idle for so many seconds of compute and so many bytes over the link.

        Linear in all three: what the radio spends on waking up and staying on after a transfer is spread over bytes.

        Raises:
            ConfigError: The profile has no energy figures.
        """
        if self.watts_compute is None or self.joules_per_byte_up is None or self.joules_per_byte_down is None:
            raise ConfigError(f"device {self.name!r} has no energy figures; add {', '.join(_ENERGY)} to its profile")
        radio_j = bytes_up * self.joules_per_byte_up + bytes_down * self.joules_per_byte_down
        return compute_s * self.watts_compute + radio_j


_ENERGY = ("watts_compute", "joules_per_byte_up", "joules_per_byte_down")
# Ranges are wide (a microcontroller, a rack), and narrow enough that no sum or product of a run leaves the numbers.
_LEAST_PER_S, _MOST_PER_S = 1e3, 1e18
_Rate = Annotated[float, Field(ge=_LEAST_PER_S, le=_MOST_PER_S)]
_Link = Annotated[float, Field(ge=1.0, le=1e15)]
_Watts = Annotated[float, Field(ge=1e-6, le=1e6)]
_JoulesPerByte = Annotated[float, Field(ge=1e-15, le=1.0)]
_Ratio = Annotated[float, Field(gt=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Rates(_Table):
    flops_per_s: _Rate
    bytes_per_s: _Rate


class _Shares(_Table):
    flops: _Ratio
    bytes: _Ratio


class _File(_Table):
    name: str = Field(min_length=1)
    title: str = Field(min_length=1)
    sources: list[str] = Field(min_length=1)
    memory_bytes: int = Field(ge=2**20, le=2**50)
    op_overhead_s: float = Field(ge=0, le=10)
    uplink_bytes_per_s: _Link
    downlink_bytes_per_s: _Link
    watts_compute: _Watts | None = None
    joules_per_byte_up: _JoulesPerByte | None = None
    joules_per_byte_down: _JoulesPerByte | None = None
    peak: _Rates | None = None
    efficiency_ratio: dict[str, _Shares] = Field(default_factory=dict)
    kinds: dict[str, _Rates] = Field(default_factory=dict)


def read_profile(path: Path) -> DeviceProfile:
    """The profile in a TOML file.

    Raises:
        ConfigError: No such file, no TOML, unknown or missing keys, or figures outside their range; all at once.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"device profile {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"device profile {path} is not TOML: {error}") from error
    return parse_profile(table, f"device profile {path}")


def parse_profile(table: Mapping[str, Any], where: str) -> DeviceProfile:
    """The profile in a table such as a file holds.

    Args:
        table: Its content.
        where: It comes from, for messages.

    Raises:
        ConfigError: Unknown or missing keys, or figures outside their range; all at once.
    """
    try:
        file = _File.model_validate(table)
    except ValidationError as error:
        raise ConfigError(
            [
                f"{where}: {'.'.join(f'{part!s:.80}' for part in found['loc'])}: {found['msg']}, "
                f"got {reprlib.repr(found['input'])}"
                for found in error.errors()
            ]
        ) from error
    missing = [key for key in _ENERGY if getattr(file, key) is None]
    if 0 < len(missing) < len(_ENERGY):
        raise ConfigError(f"{where}: energy figures go together, {', '.join(missing)} missing")
    return DeviceProfile(
        name=file.name,
        title=file.title,
        sources=tuple(file.sources),
        memory_bytes=file.memory_bytes,
        kinds=_rates(file, where),
        op_overhead_s=file.op_overhead_s,
        uplink_bytes_per_s=file.uplink_bytes_per_s,
        downlink_bytes_per_s=file.downlink_bytes_per_s,
        watts_compute=file.watts_compute,
        joules_per_byte_up=file.joules_per_byte_up,
        joules_per_byte_down=file.joules_per_byte_down,
    )


def profile_table(profile: DeviceProfile) -> dict[str, Any]:
    """The profile as a table that `parse_profile` reads; JSON."""
    table = dataclasses.asdict(profile) | {"sources": list(profile.sources)}
    return {key: value for key, value in table.items() if value is not None}


def _rates(file: _File, where: str) -> dict[str, KindRate]:
    """One rate for each kind of operator."""
    problems = [
        f"{where}: unknown operator kind {reprlib.repr(kind)}. Known: {', '.join(OP_KINDS)}."
        for kind in sorted((file.kinds.keys() | file.efficiency_ratio.keys()) - set(OP_KINDS))
    ]
    rates: dict[str, KindRate] = {}
    for kind in OP_KINDS:
        if kind in file.kinds:
            direct = file.kinds[kind]
            rates[kind] = KindRate(flops_per_s=direct.flops_per_s, bytes_per_s=direct.bytes_per_s)
        elif file.peak is not None and kind in file.efficiency_ratio:
            share = file.efficiency_ratio[kind]
            rate = KindRate(
                flops_per_s=file.peak.flops_per_s * share.flops, bytes_per_s=file.peak.bytes_per_s * share.bytes
            )
            if min(rate.flops_per_s, rate.bytes_per_s) < _LEAST_PER_S:
                problems.append(
                    f"{where}: [peak] times efficiency_ratio.{kind} must be {_LEAST_PER_S:g} per second at least, got "
                    f"{rate.flops_per_s:g} operations and {rate.bytes_per_s:g} bytes"
                )
            rates[kind] = rate
        else:
            problems.append(f"{where}: needs [kinds.{kind}], or [peak] and efficiency_ratio.{kind}")
    if problems:
        raise ConfigError(problems)
    return rates
