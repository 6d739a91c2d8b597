"""What goes wrong on devices, on purpose: by probability or by a file that says when and to whom.

Which task fails, and how, follows from the task's seed, so it is the same in every replay of the run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import final

import torch

from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientTask, Update
from fedhybrid.registry import nearest_hint
from fedhybrid.seeds import derive_seed

__all__ = ["FAULTS", "Fault", "Faults", "Incident", "damaged", "read_incidents"]

FAULTS = ("crash", "time_out", "disconnected", "out_of_memory", "corrupt", "non_finite")
_COLUMNS = ("client", "from_s", "to_s", "kind")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One task's fate: what happens, and after which share of its computing (or, `disconnected`, of its upload)."""

    kind: str
    at_ratio: float


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A task of this client that begins in [from_s, to_s) fails in this way."""

    client: int
    from_s: float
    to_s: float
    kind: str


@final
@dataclass(frozen=True, kw_only=True)
class Faults:
    """Probabilities that a task ends in each kind of failure, and failures that are planned.

    Attributes:
        crash: The device's program ends while it computes.
        time_out: The device goes on for ever; the server gives it up after the time-out.
        disconnected: The connection is lost during the upload.
        out_of_memory: Another app takes the memory, and the system ends the program.
        corrupt: What arrives is not what was sent: tensors are missing, or of another shape or type.
        non_finite: The update holds infinities or NaN.
        incidents: Failures by time and client; they come before what is drawn.
    """

    crash: float = 0.0
    time_out: float = 0.0
    disconnected: float = 0.0
    out_of_memory: float = 0.0
    corrupt: float = 0.0
    non_finite: float = 0.0
    incidents: tuple[Incident, ...] = ()

    def __post_init__(self) -> None:
        problems = [
            f"failures.{f.name} must be a probability, 0 to 1, got {getattr(self, f.name)}"
            for f in fields(self)
            if f.name in FAULTS and not 0 <= getattr(self, f.name) <= 1
        ]
        total = sum(getattr(self, kind) for kind in FAULTS)
        if not problems and total > 1 + 1e-12:
            problems.append(
                f"failures: the probabilities add up to {total:g}; a task fails in one way, at most 1 in all"
            )
        if problems:
            raise ConfigError(problems)

    def of(self, task: ClientTask, now_s: float) -> Fault | None:
        """What will happen to a task that begins at `now_s`; None where nothing will."""
        at_ratio = derive_seed(task.seed, purpose="fault's moment") / 2**63
        for incident in self._by_client.get(task.client, ()):
            if incident.from_s <= now_s < incident.to_s:
                return Fault(kind=incident.kind, at_ratio=at_ratio)
        left = derive_seed(task.seed, purpose="fault") / 2**63
        for kind in FAULTS:
            left -= getattr(self, kind)
            if left < 0:
                return Fault(kind=kind, at_ratio=at_ratio)
        return None

    @cached_property
    def _by_client(self) -> dict[int, list[Incident]]:
        found: dict[int, list[Incident]] = {}
        for incident in self.incidents:
            found.setdefault(incident.client, []).append(incident)
        return found

    def __bool__(self) -> bool:
        return bool(self.incidents) or any(getattr(self, kind) > 0 for kind in FAULTS)


def damaged(update: Update, kind: str, seed: int) -> Update:
    """What arrives of an update that is damaged on its way ("corrupt"), or that went wrong on the device.

    The damage is real: the server finds it by looking at what came, as it would with anybody's update.
    """
    names = sorted(update.weights)
    name = names[derive_seed(seed, purpose="damaged tensor") % len(names)]
    weights = dict(update.weights)
    if kind == "non_finite":
        floating = [each for each in names if weights[each].is_floating_point() and weights[each].numel()]
        if not floating:
            return replace(update, loss_mean=math.nan)
        name = floating[derive_seed(seed, purpose="damaged tensor") % len(floating)]
        broken = weights[name].clone(memory_format=torch.contiguous_format)
        broken.view(-1)[derive_seed(seed, purpose="damaged element") % broken.numel()] = math.nan
        return replace(update, weights=weights | {name: broken})
    tensor = weights.pop(name)
    flat = tensor.reshape(-1)
    damages: tuple[Callable[[], None], ...] = (
        lambda: weights.update({f"{name}?": tensor}),
        lambda: weights.update({name: torch.cat([flat, flat.new_zeros(1)])}),
        lambda: weights.update({name: tensor.to(torch.complex64)}),
    )
    damages[derive_seed(seed, purpose="damage") % len(damages)]()
    return replace(update, weights=weights)


def read_incidents(path: Path) -> tuple[Incident, ...]:
    """Failures from a CSV file with the columns client, from_s, to_s and kind.

    Raises:
        ConfigError: The file cannot be read, lacks columns, or has rows that make no sense; all at once.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(f"failures.trace: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"failures.trace: {path} cannot be read: {error}") from error
    if not rows or set(rows[0]) != set(_COLUMNS):
        raise ConfigError(f"failures.trace: {path} must have rows below the columns {', '.join(_COLUMNS)}")
    incidents, problems = [], []
    for number, row in enumerate(rows, start=2):
        try:
            incident = Incident(
                client=int(row["client"]), from_s=float(row["from_s"]), to_s=float(row["to_s"]), kind=row["kind"]
            )
        except (TypeError, ValueError):
            problems.append(
                f"failures.trace: {path}:{number}: client, from_s and to_s must be numbers, got {row!r:.80}"
            )
            continue
        if incident.kind not in FAULTS:
            hint = nearest_hint(str(incident.kind), FAULTS)
            problems.append(
                f"failures.trace: {path}:{number}: unknown kind {incident.kind!r}.{hint} Known: {', '.join(FAULTS)}."
            )
        elif not (incident.client >= 0 and incident.from_s < incident.to_s):
            problems.append(
                f"failures.trace: {path}:{number}: client must be at least 0 and from_s below to_s, got {row!r:.80}"
            )
        incidents.append(incident)
    if problems:
        raise ConfigError(problems)
    return tuple(incidents)
