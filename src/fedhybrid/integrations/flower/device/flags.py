"""What `fedhybrid flower join` was told, checked before anything is done: all that is wrong at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from fedhybrid.devices import load_profile
from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.names import is_node_name
from fedhybrid.units import parse_budget

__all__ = ["flag_problems"]


def flag_problems(
    *,
    name: str,
    home: Path,
    ca_file: Path | None = None,
    key_file: Path | None = None,
    budget: str | int | None = None,
    device: str | None = None,
    client: int | None = None,
    data_root: Path | None = None,
    hard_limit: bool = False,
    patience_s: float | None = None,
) -> list[str]:
    """A line for each argument of `joining.join` that makes no sense."""
    problems = []
    if not is_node_name(name):
        problems.append(
            f"--name {name!r:.80}: use letters, digits, '.', '_' and '-', at most 64, first a letter or digit"
        )
    if home.exists() and not home.is_dir():
        problems.append(f"--home {home} is no folder; name one that this device has to itself")
    for flag, file in {"--ca": ca_file, "--key": key_file}.items():
        if file is not None and not file.is_file():
            problems.append(f"{flag} {file}: there is no such file; `fedhybrid flower keys` at the server makes it")
    if data_root is not None and not data_root.is_dir():
        problems.append(f"--data {data_root}: there is no such folder; give the one that holds the data set here")
    if budget is not None:
        problems += _problems("--budget", lambda: parse_budget(budget))
    if device is not None:
        problems += _problems("--device", lambda: load_profile(device))
    if client is not None and client < 0:
        problems.append(f"--client must be a number from 0 on, got {client}")
    if hard_limit and budget is None:
        problems.append("--hard-limit needs --budget: one that follows free memory would end the program by chance")
    if patience_s is not None and not (math.isfinite(patience_s) and patience_s >= 0):
        problems.append(f"--patience-s must be seconds from 0 on, got {patience_s}; leave it out to try for ever")
    return problems


def _problems(flag: str, read: Callable[[], object]) -> list[str]:
    try:
        read()
    except ConfigError as error:
        return [f"{flag}: {problem}" for problem in error.problems]
    return []
