"""Stored records in and out of JSON: one object a line in `*.jsonl`, one object in a file of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fedhybrid.errors import ConfigError
from fedhybrid.records.stored import ClientRecord, RoundRecord, Summary

__all__ = ["COMPARISON", "append_jsonl", "as_json", "from_json", "read_jsonl", "read_record"]

COMPARISON = "comparison.json"  # what a comparison fixes, in its folder

R = TypeVar("R")

_TYPES: dict[type[Any], dict[str, Any]] = {cls: get_type_hints(cls) for cls in (RoundRecord, ClientRecord, Summary)}


def as_json(record: Any) -> str:
    """The record as one line of JSON, keys in the order of the fields."""
    return json.dumps(vars(record), allow_nan=False)  # fields are plain values already; `asdict` would copy them all


def from_json(cls: type[R], text: str, *, where: str) -> R:
    """The record again.

    Args:
        cls: One of the stored records.
        text: What `as_json` wrote.
        where: The file, and the line in it, for messages.

    Raises:
        ConfigError: The text is no JSON object with exactly this record's fields, each of its type; all of them.
    """
    try:
        raw = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise ConfigError(f"{where}: not a {cls.__name__} record: {error}") from error
    if problems := _problems(cls, raw):
        raise ConfigError([f"{where}: not a {cls.__name__} record: {problem}" for problem in problems])
    return cls(**raw)


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _problems(cls: type[Any], raw: Any) -> list[str]:
    """What keeps decoded JSON from being this record."""
    if not isinstance(raw, dict):
        return [f"needs an object, found {raw!r:.60}"]
    types, fields = _TYPES[cls], dataclasses.fields(cls)
    missing = dataclasses.MISSING
    optional = {f.name for f in fields if f.default is not missing or f.default_factory is not missing}
    found = [f"{name!r} is missing" for name in types if name not in raw and name not in optional]
    found += [f"{name!r} is no field of it" for name in raw if name not in types]
    return found + [
        f"{name!r} must be {next(str(f.type) for f in fields if f.name == name)}, found {raw[name]!r:.60}"
        for name, wanted in types.items()
        if name in raw and not _fits(wanted, raw[name])
    ]


def _fits(wanted: Any, value: Any) -> bool:
    """Whether decoded JSON is of a type that a stored record has; a whole number is a float too, a truth value none."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is UnionType:
        return any(_fits(each, value) for each in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(inner[0], each) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(inner[1], each) for each in value.values())
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if wanted is float else wanted)


def read_record(cls: type[R], path: Path) -> R:
    """The record that a file holds.

    Raises:
        ConfigError: The file cannot be read, or is no such record.
    """
    return from_json(cls, _text(path, path.read_bytes()), where=str(path))


def read_jsonl(cls: type[R], path: Path, length_bytes: int | None = None) -> list[R]:
    """The records of a `*.jsonl` file that may still be written: none where it is missing.

    A last line without its end is what a killed process leaves, and is left out.

    Args:
        cls: One of the stored records.
        path: The file.
        length_bytes: Only this much of it; by default all.

    Raises:
        ConfigError: Lines that are no such record; all of them.
    """
    content = path.read_bytes()[:length_bytes] if path.is_file() else b""
    records: list[R] = []
    problems: list[str] = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            records.append(from_json(cls, _text(f"{path}:{number}", line), where=f"{path}:{number}"))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return records


def _text(where: object, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def append_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Adds one line a record; returns the file's new length in bytes.

    The lines are safe from the end of this process when this returns, but not yet from that of the machine.
    """
    with path.open("ab") as out:
        out.write("".join(as_json(record) + "\n" for record in records).encode())
        out.flush()
        return out.tell()
