"""What travels between the parts of a federation, and what a run leaves behind: frozen data, no behaviour.

Records that are stored (`RoundRecord`, `ClientRecord`, `Summary`) are JSON objects, one a line in `*.jsonl`;
`as_json` and `from_json` are the only way in and out. Times are seconds, sizes are bytes, as the names say.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors

__all__ = [
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
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


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
    """One piece of work for one client. `plan` names a plan of the run's plan book; None means the unplanned step."""

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
    """A task that did not come back with an update. `kind` is one word: "out_of_memory", "non_finite", "no_data"."""

    client: int
    round_index: int
    kind: str
    detail: str


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


def as_json(record: Any) -> str:
    """The record as one line of JSON, keys in the order of the fields."""
    return json.dumps(dataclasses.asdict(record), allow_nan=False)


def from_json(cls: type[R], text: str, *, where: str) -> R:
    """The record again.

    Raises:
        ConfigError: The text is no JSON object with exactly this record's fields.
    """
    try:
        raw = json.loads(text)
        return cls(**raw)
    except (json.JSONDecodeError, TypeError) as error:
        raise ConfigError(f"{where}: not a {cls.__name__} record: {error}") from error


def read_jsonl(cls: type[R], path: Path) -> list[R]:
    """All records of a `*.jsonl` file.

    Raises:
        ConfigError: The file is missing or a line is no such record.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; is its folder the folder of a run?")
    return list(_records(cls, path))


def _records(cls: type[R], path: Path) -> Iterator[R]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip():
            yield from_json(cls, line, where=f"{path}:{number}")


def append_jsonl(path: Path, records: list[Any]) -> None:
    """Adds one line a record."""
    with path.open("a") as out:
        out.writelines(as_json(record) + "\n" for record in records)
