"""A run's folder read back into records: one run, or several variants side by side."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientRecord, RoundRecord, Summary, read_jsonl, read_record

__all__ = ["RunRecords", "Runs", "load_records", "load_runs"]

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """Everything that one run has written.

    Attributes:
        folder: Where it lies.
        rounds: One record a round, in order.
        clients: One record a task, in order.
        summary: None while the run is unfinished.
        plans: Each plan's JSON object by its name (`ClientRecord.plan`).
        config: The complete, resolved configuration.
    """

    folder: Path
    rounds: tuple[RoundRecord, ...]
    clients: tuple[ClientRecord, ...]
    summary: Summary | None
    plans: dict[str, dict[str, Any]]
    config: dict[str, Any]


Runs = Mapping[str, RunRecords]  # by label


def load_records(folder: Path | str) -> RunRecords:
    """The records of one run, finished or not.

    Raises:
        ConfigError: No run lies there, or a file of it cannot be read; every such file is named.
    """
    folder = Path(folder)
    if not _is_run(folder):
        raise ConfigError(_why_not(folder))
    problems: list[str] = []
    run = RunRecords(
        folder=folder,
        rounds=_jsonl(RoundRecord, folder / "rounds.jsonl", problems),
        clients=_jsonl(ClientRecord, folder / "clients.jsonl", problems),
        summary=_summary(folder / "summary.json", problems),
        plans={path.stem: _object(path, problems) for path in sorted((folder / "plans").glob("*.json"))},
        config=_config(folder / "config.toml", problems),
    )
    if problems:
        raise ConfigError(problems)
    return run


def load_runs(folder: Path | str) -> dict[str, RunRecords]:
    """The runs in a folder by label: its variants (one subfolder each), or the one run that lies there itself.

    Variants come in the order of the recipe (`[compare]` in the folder's own config.toml), else by label.

    Raises:
        ConfigError: Neither a run nor variants lie there, or some file cannot be read.
    """
    folder = Path(folder)
    if _is_run(folder):
        return {folder.resolve().name: load_records(folder)}
    variants = _variants(folder)
    if not variants:
        raise ConfigError(_why_not(folder))
    runs: dict[str, RunRecords] = {}
    problems: list[str] = []
    for variant in variants:
        try:
            runs[variant.name] = load_records(variant)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return runs


def _is_run(folder: Path) -> bool:
    """A run that has just begun has its configuration only; that of a comparison names variants."""
    if any((folder / name).is_file() for name in ("rounds.jsonl", "summary.json")):
        return True
    return (folder / "config.toml").is_file() and not _labels(folder)


def _labels(folder: Path) -> list[str]:
    return list(_config(folder / "config.toml", []).get("compare", {}).get("variants", {}))


def _variants(folder: Path) -> list[Path]:
    """Subfolders with a run, in the order in which the recipe names them, then by name."""
    if not folder.is_dir():
        return []
    named = _labels(folder)
    found = sorted(path for path in folder.iterdir() if _is_run(path))
    return sorted(found, key=lambda path: named.index(path.name) if path.name in named else len(named))


def _why_not(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist; give the folder that a run wrote (its --out)"
    if not folder.is_dir():
        return f"{folder} is a file; give the folder that a run wrote (its --out)"
    if variants := _variants(folder):
        labels = ", ".join(path.name for path in variants)
        return f"{folder} holds several runs ({labels}); give one of these folders, or read all with load_runs"
    return f"{folder} is not the folder of a run: neither it nor a folder in it has config.toml or rounds.jsonl"


def _jsonl(cls: type[R], path: Path, problems: list[str]) -> tuple[R, ...]:
    try:
        return tuple(read_jsonl(cls, path))
    except ConfigError as error:
        problems += error.problems
        return ()


def _summary(path: Path, problems: list[str]) -> Summary | None:
    try:
        return read_record(Summary, path) if path.is_file() else None
    except ConfigError as error:
        problems += error.problems
        return None


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:  # no JSON, or no text at all
        problems.append(f"{path}: not JSON: {error}")
        return {}
    if isinstance(raw, dict):
        return raw
    problems.append(f"{path}: a plan must be a JSON object, found {type(raw).__name__}")
    return {}


def _config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: not TOML: {error}")
        return {}
