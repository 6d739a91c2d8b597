"""A plan: what a solver decided, what it promises, and enough to run it elsewhere. Plain data, JSON in and out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from fedhybrid.errors import ConfigError
from fedhybrid.planner.packable import LOSSY
from fedhybrid.planner.problem import BRIEF, RECOMPUTE, TRANSIENT

__all__ = ["OPTIONS", "CallDecision", "Plan", "TensorDecision"]

_VERSION = 2
OPTIONS = {"recompute": RECOMPUTE, "recompute-transient": TRANSIENT, "recompute-brief": BRIEF}


@dataclass(frozen=True, kw_only=True)
class TensorDecision:
    """One storage that is not simply kept. `storage` numbers it in the graph; `tensor` is for people.

    `action` is "recompute", "recompute-transient", "recompute-brief", or "encode:" with a codec's name.
    """

    storage: int
    tensor: str
    action: str
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class CallDecision:
    """One call that runs in `chunks` parts. `replay`: the call that makes op `op`'s output again, not the op itself.

    `op` numbers it in the graph, `name` is for people; `exact`: the parts give the whole call's bits.
    """

    op: int
    replay: bool
    name: str
    chunks: int
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do with each tensor, and the promise that comes with it.

    Attributes:
        fingerprint: Of the graph that the plan belongs to; independent of names.
        budget_bytes: What was asked for, resident bytes included; None for a plan without a budget.
        resident_bytes: Parameters, buffers, optimizer state and batch (R).
        eager_peak_bytes: Peak of the same step in PyTorch eager (R + A).
        keep_all_peak_bytes: Peak of the captured program without any decision.
        peak_bytes: Peak of this plan; what `TrainStep.measure` measures.
        peak_op: The operator at the peak.
        step_time_s: Predicted seconds of a step under the costs that the plan was made with.
        extra_time_s: How much of it is recomputation.
        bound_extra_time_s: A proven lower bound of `extra_time_s` over all plans within the budget; if this plan does
            not change the order of sums, over all that do not.
        gradient_error: Predicted relative L2 error of the gradient; 0 for plans without lossy actions, None where
            nobody set a cap on it, so that it was not looked at.
        solver: Which solver found it.
        threads: Intra-op threads that the workspace was measured with.
        decisions: What happens to tensors that are not simply kept.
        splits: Calls that run in parts.
        timelines: Bytes live at the worst moment of each call, resident included, for "eager", "keep_all", "planned".
        timeline_marks: For each timeline, `backward_at`: where its backward pass starts.
    """

    fingerprint: str
    budget_bytes: int | None
    resident_bytes: int
    eager_peak_bytes: int
    keep_all_peak_bytes: int
    peak_bytes: int
    peak_op: str
    step_time_s: float
    extra_time_s: float
    bound_extra_time_s: float
    gradient_error: float | None
    solver: str
    threads: int
    decisions: tuple[TensorDecision, ...]
    splits: tuple[CallDecision, ...]
    timelines: dict[str, list[int]]
    timeline_marks: dict[str, dict[str, int]]
    version: int = _VERSION

    def to_json(self) -> str:
        """The plan as JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan again.

        Raises:
            ConfigError: Not JSON, another version, or missing, unknown or wrong fields (all named).
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"a plan must be JSON: {error}") from error
        problems = _problems(raw)
        if problems:
            raise ConfigError(problems)
        raw["decisions"] = tuple(TensorDecision(**d) for d in raw["decisions"])
        raw["splits"] = tuple(CallDecision(**d) for d in raw["splits"])
        return cls(**raw)

    @property
    def key(self) -> tuple[tuple[str, int, str], ...]:
        """What decides which program a plan is: two plans of one graph with equal keys run the same calls."""
        tensors = [("tensor", d.storage, d.action) for d in self.decisions]
        return (*tensors, *(("replay" if d.replay else "op", d.op, str(d.chunks)) for d in self.splits))

    @property
    def lossy(self) -> bool:
        """Whether codecs change some tensor."""
        return any(d.action.removeprefix("encode:") in LOSSY for d in self.decisions)

    @property
    def bit_identical(self) -> bool:
        """Whether the plan promises eager's bits: nothing lossy, and no split that changes the order of sums."""
        return not self.lossy and all(split.exact for split in self.splits)

    @property
    def recomputed_bytes(self) -> int:
        """Bytes of the storages that are dropped and made again."""
        return sum(d.nbytes for d in self.decisions if d.action.startswith("recompute"))


def _problems(raw: Any) -> list[str]:
    """Every fault of a decoded plan file."""
    if not isinstance(raw, dict):
        return [f"a plan must be a JSON object, got {type(raw).__name__}"]
    if raw.get("version") != _VERSION:
        return [f"this plan has version {raw.get('version')!r}; this fedhybrid reads version {_VERSION}: plan again"]
    wanted = {field.name: str(field.type) for field in dataclasses.fields(Plan)}
    found = [f"plan: {key!r} is missing" for key in wanted if key not in raw]
    found += [f"plan: unknown key {key!r}" for key in raw if key not in wanted]
    accepted: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "int | None": (int, type(None)),
        "float": (int, float),
        "float | None": (int, float, type(None)),
    }
    for key, kind in wanted.items():
        if key in raw and kind in accepted and (not isinstance(raw[key], accepted[kind]) or isinstance(raw[key], bool)):
            found.append(f"plan: {key!r} must be {kind}, got {raw[key]!r}")
    for key, entry_type in (("decisions", TensorDecision), ("splits", CallDecision)):
        entries = raw.get(key, [])
        if not isinstance(entries, list):
            found.append(f"plan: {key!r} must be a list")
            continue
        for number, entry in enumerate(entries):
            found += _entry_problems(f"plan: {key} {number}", entry, entry_type)
    for key in ("timelines", "timeline_marks"):
        if not isinstance(raw.get(key, {}), dict):
            found.append(f"plan: {key!r} must be an object")
    return found


def _entry_problems(where: str, entry: Any, kind: type) -> list[str]:
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    if not isinstance(entry, dict) or set(entry) != set(types):
        return [f"{where} must have exactly the keys {sorted(types)}"]
    found = []
    for name, wanted in types.items():
        value = entry[name]
        right = type(value).__name__ == wanted
        if not right:
            found.append(f"{where}: {name!r} must be {wanted}, got {value!r}")
    if kind is TensorDecision and not found and entry["action"] not in OPTIONS and ":" not in entry["action"]:
        found.append(f"{where} has unknown action {entry['action']!r}; known: {', '.join(OPTIONS)}, encode:CODEC")
    return found
