"""The file of plays by speaking role, and what the tasks on it share: each role's text has a first part to train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedhybrid.data.files import find_folder, require_root
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray

__all__ = ["joined", "read_roles", "training_length"]

_FOLDERS = ("shakespeare", ".")
_FILE = "roles.json"
_EXPECTED = '{"users": [names], "user_data": {name: {"lines": [texts]}}}'
_TRAIN_PERCENT = 80


def read_roles(dataset: str, root: Path | None) -> tuple[Path, list[tuple[str, str]]]:
    """The file below `root`, and name and text of each of its roles, lines joined by line ends.

    Args:
        dataset: The data set's name, for messages.
        root: The folder that `data.root` names.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    root = require_root(dataset, root, f"{_FOLDERS[0]}/{_FILE}")
    folder, missing = find_folder(root, _FOLDERS, (_FILE,))
    if folder is None:
        raise ConfigError(f"dataset {dataset!r}: {missing}; give the folder above {_FOLDERS[0]} with data.root=DIR")
    path = folder / _FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        lines = [(user, raw["user_data"][user]["lines"]) for user in raw["users"]]
        if not all(isinstance(each, list) for _, each in lines):
            raise TypeError("lines must be a list of texts")
        roles = [(user, "\n".join(each)) for user, each in lines]
        "".join(text for _, text in roles).encode("utf-32-le")  # refuses half characters, which JSON can hold
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: needs JSON of the form {_EXPECTED}: {type(error).__name__}: {error}") from error
    return path, roles


def training_length(length: int) -> int:
    """How much of the beginning of a role's text is for training; the rest is for the test."""
    return length * _TRAIN_PERCENT // 100


def joined(starts: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Where the windows of all roles begin, from those of each; and the number of each window's role."""
    return np.concatenate(starts), np.repeat(np.arange(len(starts)), [len(each) for each in starts])
