"""Device profiles by name, each a TOML file with its sources."""

from __future__ import annotations

from pathlib import Path

from fedhybrid.devices.profile import DeviceProfile, KindRate, parse_profile, profile_table, read_profile
from fedhybrid.registry import lookup

__all__ = ["DEVICES", "DeviceProfile", "KindRate", "load_profile", "parse_profile", "profile_table"]

_PROFILES = Path(__file__).parent / "profiles"

DEVICES: dict[str, Path] = {
    "desktop": _PROFILES / "desktop.toml",
    "jetson-nano": _PROFILES / "jetson-nano.toml",
    "jetson-orin-nano": _PROFILES / "jetson-orin-nano.toml",
    "laptop": _PROFILES / "laptop.toml",
    "laptop-m1": _PROFILES / "laptop-m1.toml",
    "phone-entry": _PROFILES / "phone-entry.toml",
    "phone-flagship": _PROFILES / "phone-flagship.toml",
    "phone-high-end": _PROFILES / "phone-high-end.toml",
    "phone-low-end": _PROFILES / "phone-low-end.toml",
    "phone-mid-range": _PROFILES / "phone-mid-range.toml",
    "raspberry-pi-3": _PROFILES / "raspberry-pi-3.toml",
    "raspberry-pi-4": _PROFILES / "raspberry-pi-4.toml",
    "raspberry-pi-5": _PROFILES / "raspberry-pi-5.toml",
    "raspberry-pi-zero-2": _PROFILES / "raspberry-pi-zero-2.toml",
}


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """The profile of a row of `DEVICES`, or of one's own TOML file.

    Raises:
        ConfigError: Neither a name nor a readable profile.

    >>> load_profile("raspberry-pi-4").memory_bytes == 4 * 2**30
    True
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml"):
        return read_profile(Path(name_or_path))
    return read_profile(lookup("device", DEVICES, text))
