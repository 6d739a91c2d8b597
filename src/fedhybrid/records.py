"""What travels between the parts of a federation, and what a run leaves behind: frozen data, no behaviour.

Records that are stored (`RoundRecord`, `ClientRecord`, `Summary`) are JSON objects, one a line in `*.jsonl`;
`as_json` and `from_json` are the only way in and out. Times are seconds, sizes are bytes, as the names say.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors

__all__ = [
    "COMPLETED",
    "Candidates",
    "ClientRecord",
    "ClientTask",
    "Failure",
    "LocalWork",
    "Outcome",
    "RoundRecord",
    "Summary",
    "TaskEvent",
    "Update",
    "append_jsonl",
    "as_json",
    "from_json",
    "read_jsonl",
    "read_record",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

COMPLETED = "completed"  # `ClientRecord.outcome` of a task that came back with an update


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The clients that may be selected now, as parallel arrays of one length (a fleet may be a million devices).

    Attributes:
        client: Client numbers, ascending.
        tier: Index of each client's budget tier.
        budget_bytes: Memory budget of each client for the coming round.
        num_samples: Training samples that each client holds.
        unplanned_bytes: Peak of the step without any plan (PyTorch eager); the paper's M_G.
        smallest_bytes: Smallest peak that the method can run the step in; the paper's M_min. Equals
            `unplanned_bytes` for a method without plans.
        step_s: Predicted seconds of one step as each client would run it; infinity where it cannot.
        kernel_s: Sum over the model's distinct operators of their mean seconds on each client's device.
    """

    client: IntArray
    tier: IntArray
    budget_bytes: IntArray
    num_samples: IntArray
    unplanned_bytes: int
    smallest_bytes: int
    step_s: FloatArray
    kernel_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """How much a client trains. `last_batch`: "wrap" fills it up from one more shuffle, "drop" skips it."""

    epochs: int
    batch_size: int
    lr: float
    last_batch: str = "wrap"


@dataclass(frozen=True, kw_only=True)
class ClientTask:
    """One piece of work for one client. `plan` names a plan of the run's plan book; None means the unplanned step.

    `kind` and `options` say what kind of work it is; the federation so far gives out the kind "train" only, without
    options.
    """

    round_index: int
    client: int
    weights: Tensors
    work: LocalWork
    plan: str | None
    seed: int
    kind: str = "train"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a client sends back. `squared_loss_sum` is the sum over samples seen of their squared loss."""

    client: int
    round_index: int
    weights: Tensors
    num_samples: int
    samples_seen: int
    steps: int
    loss_mean: float
    squared_loss_sum: float
    measured_peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A task that did not come back with an update. `kind` is one word: "out_of_memory", "non_finite", "no_data".

    `ran` is what a task whose result cannot be used has done all the same; None where it never ran.
    """

    client: int
    round_index: int
    kind: str
    detail: str
    ran: Update | None = None


@dataclass(frozen=True, kw_only=True)
class TaskEvent:
    """A task's end, as a driver reports it at time `at_s` of its clock; `duration_s` is from submission to end."""

    ticket: int
    at_s: float
    duration_s: float
    result: Update | Failure


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a selection policy learns of a finished task. `squared_loss_mean` is None where no update came."""

    client: int
    round_index: int
    squared_loss_mean: float | None
    num_samples: int
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One line of `rounds.jsonl`. `virtual_time_s` is the clock at the round's end; `wall_time_s` is real and differs
    from run to run (seconds since the run began, stops left out), everything else is reproducible. Accuracies are
    ratios (0 to 1), measured on the test set; `loss` is None where it is not a finite number.
    """

    round: int
    virtual_time_s: float
    accuracy: float
    loss: float | None
    train_loss: float | None
    cohort: list[int]
    completed: int
    failed: int
    bytes_up: int
    bytes_down: int
    wall_time_s: float


@dataclass(frozen=True, kw_only=True)
class ClientRecord:
    """One line of `clients.jsonl`: one task. Peaks are None where the task never ran (`outcome` says why)."""

    round: int
    client: int
    tier: str
    device: str
    outcome: str
    budget_bytes: int
    planned_peak_bytes: int | None
    measured_peak_bytes: int | None
    plan: str | None
    samples: int
    steps: int
    train_loss: float | None
    virtual_time_s: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`summary.json`. `participation` maps each tier to {"clients": in the fleet, "reached": distinct clients that
    completed a task, "tasks": tasks completed, "failed": tasks failed}; `time_to_accuracy_s` maps accuracy targets
    ("0.50", "0.60", ...) to the virtual time when first reached, None where it never was.
    """

    method: str
    policy: str
    dataset: str
    model: str
    seed: int
    rounds: int
    clients: int
    final_accuracy: float
    best_accuracy: float
    virtual_time_s: float
    wall_time_s: float
    time_to_accuracy_s: dict[str, float | None]
    bytes_up: int
    bytes_down: int
    participation: dict[str, dict[str, int]]
    budget_violations: int
    failures: dict[str, int]
    resident_bytes: int
    eager_peak_bytes: int
    runtime_bytes: int


R = TypeVar("R")

_TYPES: dict[type[Any], dict[str, Any]] = {cls: get_type_hints(cls) for cls in (RoundRecord, ClientRecord, Summary)}


def as_json(record: Any) -> str:
    """The record as one line of JSON, keys in the order of the fields."""
    return json.dumps(dataclasses.asdict(record), allow_nan=False)


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
    optional = {f.name for f in fields if f.default is not dataclasses.MISSING}
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
    """Adds one line a record; they are on disk when this returns the file's new length in bytes."""
    with path.open("ab") as out:
        out.write("".join(as_json(record) + "\n" for record in records).encode())
        out.flush()
        os.fsync(out.fileno())
        return out.tell()
