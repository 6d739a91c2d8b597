"""What the plan book keeps in a run's folder, read back."""

from __future__ import annotations

import json
from pathlib import Path

from fedhybrid.errors import ConfigError
from fedhybrid.planner import Plan

__all__ = ["INFEASIBLE", "read_infeasible", "read_plan"]

INFEASIBLE = "infeasible.json"
_ADVICE = "delete the file, then --resume makes it again"  # plans do not depend on what was solved before


def read_plan(path: Path) -> Plan:
    """A stored plan.

    Raises:
        ConfigError: The file is damaged.
    """
    try:
        return Plan.from_json(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason}; {_ADVICE}") from error
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}; {_ADVICE}" for problem in error.problems]) from error


def read_infeasible(path: Path) -> dict[str, int]:
    """The smallest budget in bytes that a plan of that name would need; nothing where no budget was too small yet.

    Raises:
        ConfigError: The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}; {_ADVICE}") from error
    if not isinstance(raw, dict) or any(type(needed_bytes) is not int for needed_bytes in raw.values()):
        raise ConfigError(f"{path}: must map names of plans to bytes, found {raw!r:.60}; {_ADVICE}")
    return raw
