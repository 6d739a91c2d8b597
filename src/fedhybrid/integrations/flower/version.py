"""Whether Flower is here, and of a version that the adapter knows; one clear line where it is not."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from fedhybrid.errors import ConfigError

__all__ = ["OFFLINE", "SUPPORTED", "go_offline", "require_flower"]

SUPPORTED = ">=1.41,<1.43"
_LEAST, _BELOW = (1, 41), (1, 43)

# Flower asks its maker's servers at each start otherwise, and Ray reports its use.
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it Ray gives advice at each start
}


def require_flower(*, simulation: bool = False) -> None:
    """Makes sure that Flower can be used, and that it asks nobody outside.

    Args:
        simulation: Whether Ray is needed, too.

    Raises:
        ConfigError: It is not installed, or another version than the adapter was made for.
    """
    extra = "flower-sim" if simulation else "flower"
    advice = f"pip install 'fedhybrid[{extra}]'"
    try:
        found = version("flwr")
    except PackageNotFoundError as error:
        raise ConfigError(f"Flower (flwr {SUPPORTED}) is not installed; {advice}") from error
    if not _LEAST <= _numbers(found) < _BELOW:
        raise ConfigError(f"flwr {SUPPORTED} is needed, found {found}; {advice}")
    if simulation and find_spec("ray") is None:
        raise ConfigError(f"Flower's simulation needs Ray, which is not installed; {advice}")
    go_offline()


def go_offline() -> None:
    """Sets `OFFLINE` for this process and those that it starts, where the user has not set it otherwise."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)


def _numbers(found: str) -> tuple[int, int]:
    """Major and minor version.

    >>> _numbers("1.41.0"), _numbers("2.0.0rc1")
    ((1, 41), (2, 0))
    """
    major, minor, *_ = (*found.split("."), "0")
    return int(major), int(minor)
