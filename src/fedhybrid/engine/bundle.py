"""Groups of named tensors and a JSON header as one piece of bytes: for checkpoints, and between processes.

The form is safetensors; the header travels in its metadata. A tensor that stands in several groups is stored once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import Tensors

__all__ = ["in_own_memory", "pack_bundle", "read_bundle", "task_as_json", "task_from_json", "unpack_bundle"]

_KEY = "fedhybrid"  # one key only: safetensors keeps several in no fixed order
_PREFIX_BYTES = 8


def task_as_json(task: ClientTask) -> dict[str, Any]:
    """All of a task but its weights, as a header holds it."""
    told = {f.name: getattr(task, f.name) for f in dataclasses.fields(task) if f.name != "weights"}
    return told | {"work": dataclasses.asdict(task.work)}


def task_from_json(told: Mapping[str, Any], weights: Tensors) -> ClientTask:
    """The task again, with these weights."""
    sent, classes = told.get("sent"), told.get("classes")
    return ClientTask(
        **{
            **told,
            "work": LocalWork(**told["work"]),
            "weights": weights,
            "sent": None if sent is None else tuple(map(str, sent)),
            "classes": None if classes is None else tuple(map(int, classes)),
        }
    )


def pack_bundle(header: Mapping[str, Any], groups: Mapping[str, Tensors], *, allow_nan: bool = False) -> bytes:
    """All of it as bytes.

    Args:
        header: JSON; with `allow_nan` also infinities and NaN, which `unpack_bundle` reads.
        groups: Their names must not contain '/'.
        allow_nan: See `header`.
    """
    stored: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    same: dict[str, str] = {}
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            path = f"{group}/{name}"
            if (known := first.setdefault(id(tensor), path)) != path:
                same[path] = known
            else:
                stored[path] = tensor
    content = {"header": header, "same": same, "groups": list(groups)}
    return save(in_own_memory(stored), metadata={_KEY: json.dumps(content, allow_nan=allow_nan)})


def unpack_bundle(packed: bytes) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """Header and groups again; for bytes of this program's own making (others: `parcels.read_bundle_bytes`)."""
    length_bytes = int.from_bytes(packed[:_PREFIX_BYTES], "little")
    metadata = json.loads(packed[_PREFIX_BYTES : _PREFIX_BYTES + length_bytes])["__metadata__"]
    return _sorted_out(metadata, load(packed))


def read_bundle(path: Path) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """Header and groups of a file.

    Raises:
        ConfigError: The file is none of this form.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            return _sorted_out(stored.metadata() or {}, tensors)
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no checkpoint of a run ({error}); start again with another --out") from error


def _sorted_out(metadata: Mapping[str, str], tensors: Tensors) -> tuple[dict[str, Any], dict[str, Tensors]]:
    content = json.loads(metadata[_KEY])
    groups: dict[str, Tensors] = {group: {} for group in content["groups"]}
    for path, tensor in (tensors | {path: tensors[known] for path, known in content["same"].items()}).items():
        group, _, name = path.partition("/")
        groups[group][name] = tensor
    return content["header"], groups


def in_own_memory(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors contiguous and none in memory of another's, as the form wants it; copied only where they are not."""
    own: Tensors = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size() and tensor.is_contiguous()
        if whole and storage.data_ptr() not in taken:
            taken.add(storage.data_ptr())
            own[name] = tensor
        else:
            own[name] = tensor.clone(memory_format=torch.contiguous_format)
    return own
