"""From the columns of a Hugging Face `datasets` table to our data sets: images or numbers, classes, people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhybrid.data.split import Dataset
from fedhybrid.data.statistics import image_halves, signal_halves
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray
from fedhybrid.registry import nearest_hint

__all__ = ["dataset_of"]

_LABELS = ("label", "labels", "target", "class", "y", "character", "fine_label")
_CLIENTS = ("client_id", "natural_id", "user_id", "user", "writer_id", "speaker_id", "subject")
_TRAIN_PERCENT = 80
_KINDS = {"b": "truth values", "i": "whole numbers", "u": "whole numbers", "f": "floats", "U": "texts", "O": "objects"}


def dataset_of(name: str, train: Any, test: Any | None, *, label: str | None, client: str | None) -> Dataset:
    """The data set that two tables make, or one that is divided here; see `data.hub.load_hub`.

    Raises:
        ConfigError: A column is missing or holds what cannot be used.
    """
    tables = [train] if test is None else [train, test]
    label = _column(name, train, "label", label, _LABELS, needed=True)
    client = _column(name, train, "client", client, _CLIENTS, needed=False)
    assert label is not None
    used = [column for column in (label, client) if column is not None]
    for table in tables:
        if len(table) == 0 or set(train.column_names) - set(table.column_names):
            raise ConfigError(f"dataset {name!r} needs samples and the same columns in training and test half")
    labels, classes = _labels(name, tables, label)
    images = [column for column, kind in train.features.items() if type(kind).__name__ == "Image"]
    if images:
        samples = _images(name, tables, images[0])
    else:
        samples = _numbers(name, tables, [column for column in train.column_names if column not in used])
    ids = None if client is None or client not in tables[-1].column_names else _numbered(name, tables, client)[0]
    if test is None:
        rows = _divide(ids[0] if ids else labels[0])
        samples, labels = [samples[0][part] for part in rows], [labels[0][part] for part in rows]
        ids = None if ids is None else [ids[0][part] for part in rows]
        if len(labels[1]) == 0:
            raise ConfigError(f"dataset {name!r} has no test half, and too few samples to make one")
    halves = [(x, torch.from_numpy(y)) for x, y in zip(samples, labels, strict=True)]
    first, second = (image_halves if images else signal_halves)(halves[0], halves[1])
    return Dataset(
        name=name,
        train=first,
        test=second,
        classes=classes,
        natural_ids=None if ids is None else ids[0],
        test_ids=None if ids is None else ids[1],
    )


def _column(name: str, table: Any, option: str, given: str | None, usual: Sequence[str], *, needed: bool) -> str | None:
    """The column that was named, or else the first with a usual name."""
    columns = table.column_names
    if given is not None:
        if given not in columns:
            raise ConfigError(
                f"dataset {name!r} has no column {given!r} ({option}).{nearest_hint(given, columns)} "
                f"Known: {', '.join(columns)}."
            )
        return given
    found = [column for column in usual if column in columns]
    if not found and needed:
        found = [column for column, kind in table.features.items() if type(kind).__name__ == "ClassLabel"]
        if len(found) != 1:
            raise ConfigError(
                f"dataset {name!r}: which column is the {option}? Say it with {name}?{option}=COLUMN. "
                f"Known: {', '.join(columns)}."
            )
    return found[0] if found else None


def _values(name: str, table: Any, column: str, kinds: str) -> NDArray[Any]:
    """A column of plain values of certain numpy kinds."""
    values = np.asarray(list(table.with_format(None)[column]))
    if values.ndim != 1 or values.dtype.kind not in kinds:
        wanted = " or ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
        found = f"{_KINDS.get(values.dtype.kind, values.dtype.name)} of {values.ndim} dimension(s)"
        raise ConfigError(f"dataset {name!r}: column {column!r} must hold {wanted}, without gaps; found {found}")
    return values


def _labels(name: str, tables: Sequence[Any], column: str) -> tuple[list[IntArray], int]:
    """Classes from 0 on, and how many there are."""
    names = getattr(tables[0].features[column], "names", None)
    if names is None:
        return _numbered(name, tables, column)
    labels = [_values(name, table, column, "iu").astype(np.int64) for table in tables]
    low, high = min(each.min() for each in labels), max(each.max() for each in labels)
    if low < 0 or high >= len(names):
        raise ConfigError(f"dataset {name!r}: column {column!r} must be 0 to {len(names) - 1}, found {low} to {high}")
    return labels, len(names)


def _numbered(name: str, tables: Sequence[Any], column: str) -> tuple[list[IntArray], int]:
    """The place of each value among all values in their order, and how many different ones there are."""
    values = [_values(name, table, column, "biuU") for table in tables]
    known, place = np.unique(np.concatenate(values), return_inverse=True)
    return np.split(place.astype(np.int64), np.cumsum([len(each) for each in values])[:-1]), len(known)


def _images(name: str, tables: Sequence[Any], column: str) -> list[Tensor]:
    """Bytes (n, channels, height, width): grey where the first image is grey, else red, green and blue."""
    mode = "L" if tables[0][0][column].mode in ("1", "L") else "RGB"
    shape = np.asarray(tables[0][0][column].convert(mode)).shape
    halves = []
    for table in tables:
        pixels = np.empty((len(table), *shape), dtype=np.uint8)
        for i, image in enumerate(_decoded(table, column)):
            found = np.asarray(image.convert(mode))
            if found.shape != shape:
                sizes = (f"{side[0]} x {side[1]}" for side in (shape, found.shape))
                raise ConfigError(f"dataset {name!r}: images must have one size, found {' and '.join(sizes)} pixels")
            pixels[i] = found
        channels_first = pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2)
        halves.append(torch.from_numpy(np.ascontiguousarray(channels_first)))
    return halves


def _decoded(table: Any, column: str) -> Iterable[Any]:
    return (row[column] for row in table.select_columns([column]).with_format(None))


def _numbers(name: str, tables: Sequence[Any], columns: Sequence[str]) -> list[Tensor]:
    """Floats (n, columns) of all columns of numbers; texts and lists are left out."""
    numeric = [
        c for c in columns if str(getattr(tables[0].features[c], "dtype", "")).startswith(("int", "uint", "float"))
    ]
    if not numeric:
        raise ConfigError(f"dataset {name!r} has neither a column of images nor columns of numbers beside its labels")
    halves = []
    for table in tables:
        stacked = np.stack([_values(name, table, c, "iuf").astype(np.float32) for c in numeric], axis=1)
        if bad := [c for i, c in enumerate(numeric) if not np.isfinite(stacked[:, i]).all()]:
            raise ConfigError(f"dataset {name!r}: columns must hold finite numbers, {', '.join(bad)} do not")
        halves.append(torch.from_numpy(stacked))
    return halves


def _divide(groups: IntArray) -> tuple[IntArray, IntArray]:
    """Sample numbers of a training and a test half: the first 80 % of each group and the rest, at least one first."""
    train, test = [], []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        cut = max(1, len(members) * _TRAIN_PERCENT // 100)
        train.append(members[:cut])
        test.append(members[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
