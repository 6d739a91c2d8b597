"""Jobs and what comes of them as JSON and tensors: between processes and between machines.

What is read here may come from anywhere: nothing is executed, and whatever does not fit is one `ConfigError`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedhybrid.engine.bundle import pack_bundle, task_as_json, task_from_json, unpack_bundle
from fedhybrid.engine.labour import Job
from fedhybrid.engine.traffic import Delivery
from fedhybrid.engine.walk import Leg
from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors

__all__ = ["as_bundle", "delivery_from", "delivery_parts", "job_from", "job_parts", "read_bundle_bytes"]

T = TypeVar("T")
Parts = tuple[dict[str, Any], dict[str, Tensors]]
_TENSORS = ("weights", "masks", "state")
_MOST_BYTES = 2**63 - 1
_MOST = 2**53 - 1  # what a float counts exactly, because such numbers become weights
_COUNTS = {"num_samples": _MOST, "samples_seen": _MOST, "steps": _MOST, "measured_peak_bytes": _MOST_BYTES}
_FIGURES = ("loss_mean", "squared_loss_sum")
_PLAIN = frozenset(f.name for f in fields(Update)) - {*_TENSORS}
_LONGEST_TOLD = 300  # characters of what was wrong


def job_parts(job: Job, *, model: bool = True) -> Parts:
    """A job as a JSON header and groups of tensors: "model" (left out without `model`), "state" and "shard"."""
    header = {
        "task": task_as_json(job.task),
        "device": job.device,
        "legs": [[leg.plan, leg.steps] for leg in job.legs],
        "evaluation_batch": job.evaluation_batch,
    }
    groups = {"state": job.state, "shard": {"": torch.from_numpy(job.shard)}}
    return header, groups | ({"model": job.task.weights} if model else {})


def job_from(header: Mapping[str, Any], groups: Mapping[str, Tensors], *, model: Tensors | None = None) -> Job:
    """The job again.

    Args:
        header: As `job_parts` made it.
        groups: The same; without "shard" and "state" they are empty, as where the device knows them itself.
        model: What it starts from, where that did not come with it.

    Raises:
        ConfigError: They are not what `job_parts` makes.
    """

    def made() -> Job:
        return Job(
            task=task_from_json(header["task"], groups["model"] if model is None else model),
            device=str(header["device"]),
            legs=tuple(Leg(plan=plan, steps=int(steps)) for plan, steps in header["legs"]),
            shard=groups["shard"][""].numpy() if "shard" in groups else np.zeros(0, dtype=np.int64),
            state=groups.get("state", {}),
            at_s=0.0,
            evaluation_batch=int(header["evaluation_batch"]),
        )

    return _read("a task", made)


def delivery_parts(delivery: Delivery) -> Parts:
    """What came of a job as a JSON header (which may hold infinities and NaN) and groups of tensors."""
    update = delivery.update
    told = {f.name: getattr(update, f.name) for f in fields(update) if f.name not in _TENSORS}
    told["metrics"] = dict(update.metrics)
    groups: dict[str, Tensors] = {"weights": update.weights, "masks": update.masks}
    if update.state is not None:
        groups["state"] = update.state
    if delivery.payload is not None:
        groups["payload"] = {"": torch.from_numpy(np.frombuffer(delivery.payload, dtype=np.uint8).copy())}
    if delivery.served:
        groups["served"] = delivery.served
    talk = {
        "asked_bytes": delivery.asked_bytes,
        "answered_bytes": delivery.answered_bytes,
        "served_s": delivery.served_s,
    }
    return {"update": told, "talk": talk}, groups


def delivery_from(header: Mapping[str, Any], groups: Mapping[str, Tensors], task: ClientTask | None = None) -> Delivery:
    """What came of a job again.

    Args:
        header: As `delivery_parts` made it.
        groups: The same.
        task: What was asked for, if the sender cannot be trusted to answer that. Its "served" is not read then: the
            server knows what it has trained.

    Raises:
        ConfigError: They are not what `delivery_parts` makes, or not of this task.
    """

    def made() -> Delivery:
        told = header["update"] if task is None else _checked(header["update"], task)
        if more := sorted(told.keys() - _PLAIN):
            raise ValueError(f"its header holds {reprlib.repr(more)}, which are no figures of an update")
        update = Update(**{**told, **{name: groups[name] for name in _TENSORS if name in groups}})
        payload: Tensor | None = groups["payload"][""] if "payload" in groups else None
        if payload is not None and payload.dtype != torch.uint8:
            raise TypeError(f"its payload is {payload.dtype}, needs torch.uint8")
        asked_bytes, answered_bytes = (header["talk"][name] for name in ("asked_bytes", "answered_bytes"))
        if not (_counts(asked_bytes) and _counts(answered_bytes)):
            raise ValueError(f"it has talked for {reprlib.repr((asked_bytes, answered_bytes))} bytes")
        return Delivery(
            update=update,
            payload=None if payload is None else payload.numpy().tobytes(),
            served=groups.get("served", {}) if task is None else {},
            served_s=header["talk"]["served_s"] if task is None else 0.0,
            asked_bytes=asked_bytes,
            answered_bytes=answered_bytes,
        )

    return _read("an update", made)


def read_bundle_bytes(packed: bytes) -> Parts:
    """Header and groups of bytes that came from elsewhere (`engine.bundle.pack_bundle`).

    Raises:
        ConfigError: They are no bundle.
    """

    def made() -> Parts:
        header, groups = unpack_bundle(packed)
        for group, tensors in groups.items():
            "".join([group, *tensors]).encode()  # a name that is no text would break whoever writes it down
        return header, groups

    return _read("a bundle of tensors", made)


def as_bundle(parts: Parts) -> bytes:
    """A header and groups as bytes."""
    return pack_bundle(*parts, allow_nan=True)


def _read(what: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (
        KeyError,
        TypeError,
        ValueError,  # no JSON and no Unicode among them
        AttributeError,
        OverflowError,
        RecursionError,
        SafetensorError,
    ) as error:
        told = f"{error!s:.{_LONGEST_TOLD}}"
        raise ConfigError(f"what came is not {what} ({type(error).__name__}: {told})") from error


def _checked(told: Mapping[str, Any], task: ClientTask) -> dict[str, Any]:
    """The plain fields of an update: figures of their types and in their ranges, of this task."""
    found = tuple(told[name] for name in ("client", "round_index", "kind"))
    wanted = (task.client, task.round_index, task.kind)
    if found != wanted or [type(each) for each in found] != [type(each) for each in wanted]:
        raise ValueError(f"it is of client, round and kind {reprlib.repr(found)}, wanted {wanted}")
    bad = [f"{name} {reprlib.repr(told[name])}" for name, most in _COUNTS.items() if not _counts(told[name], most=most)]
    # Training that diverged says so: its losses may be infinite or NaN.
    losses = {name: _figure(told[name]) for name in _FIGURES}
    metrics = {name: _figure(figure) for name, figure in told["metrics"].items()}
    bad += [f"{name} {reprlib.repr(told[name])}" for name, figure in losses.items() if figure is None]
    bad += [
        f"{name:.80} {reprlib.repr(told['metrics'][name])}"
        for name, figure in metrics.items()
        if figure is None or not math.isfinite(figure)
    ]
    if bad:
        raise ValueError(f"figures that are none: {', '.join(bad)}")
    return {**told, **losses, "metrics": metrics}


def _counts(found: Any, *, most: int = _MOST_BYTES) -> bool:
    return type(found) is int and 0 <= found <= most


def _figure(found: Any) -> float | None:
    """A float of what may be anything; None where it is none."""
    if type(found) not in (int, float):
        return None
    try:
        return float(found)
    except OverflowError:
        return None
