"""UCI HAR: six activities of 30 people, from the motion sensors of a phone at the waist; each person is a client.

Source: D. Anguita, A. Ghio, L. Oneto, X. Parra, J. L. Reyes-Ortiz, "A Public Domain Dataset for Human Activity
Recognition Using Smartphones", ESANN 2013. Nine signals at 50 Hz in windows of 128 samples that overlap by half.
Differs: read from two `.npz` files that may hold a part of the windows (hence the name), with values rounded. The
original keeps nine people for the test; here both files are pooled, and every person has training and test samples.

Of each person's windows of each activity, in their order, the first 80 % are for training, the next one is left out,
the rest is for the test. A window shares half its samples with the one before: without the gap, the last training
window would be half of the first test window. Cutting inside each activity, and not at the end of a person's whole
record, keeps all six activities in both halves: people went through them in turn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedhybrid.data.files import find_folder, read_npz, require_root
from fedhybrid.data.split import Dataset
from fedhybrid.data.statistics import signal_halves
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray

__all__ = ["load_uci_har"]

_FOLDERS = ("uci-har-subset", ".")
_FILES = ("train.npz", "test.npz")
_SHAPE = (9, 128)
_CLASSES = 6
_TRAIN_PERCENT = 80
_GAP_WINDOWS = 1

_Windows = tuple[NDArray[np.float32], IntArray, IntArray]


def load_uci_har(root: Path | None = None) -> Dataset:
    """UCI HAR from below `root`: signals of 9 x 128, 6 activities; `natural_ids` are the people's numbers.

    Raises:
        ConfigError: A file is missing or damaged; all problems at once.
    """
    root = require_root("uci-har", root, f"{_FOLDERS[0]}/{_FILES[0]} and {_FILES[1]}")
    folder, missing = find_folder(root, _FOLDERS, _FILES)
    if folder is None:
        raise ConfigError(f"dataset 'uci-har': {missing}; give the folder above {_FOLDERS[0]} with data.root=DIR")
    problems: list[str] = []
    parts = [part for name in _FILES if (part := _read(folder / name, problems)) is not None]
    if problems:
        raise ConfigError(problems)
    signals, labels, people = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    train_rows, test_rows = _rows(labels, people)
    if len(test_rows) == 0:
        raise ConfigError(f"{folder}: too few windows: nobody has the six of one activity that make a test window")
    halves = [(torch.from_numpy(signals[rows]), torch.from_numpy(labels[rows])) for rows in (train_rows, test_rows)]
    train, test = signal_halves(halves[0], halves[1])
    return Dataset(
        name="uci-har (subset)",
        train=train,
        test=test,
        classes=_CLASSES,
        natural_ids=people[train_rows],
        test_ids=people[test_rows],
    )


def _read(path: Path, problems: list[str]) -> _Windows | None:
    """Signals, labels and people of one file; what is wrong goes to `problems`."""
    try:
        stored = read_npz(path, ("x", "y", "subject"))
    except ConfigError as error:
        problems += error.problems
        return None
    x, y, subject = stored["x"], stored["y"], stored["subject"]
    found = []
    if x.ndim != 3 or x.shape[1:] != _SHAPE or x.dtype.kind != "f" or len(x) == 0:
        found.append(f"x must be floats of n x {_SHAPE[0]} x {_SHAPE[1]}, n at least 1; found {_words(x)}")
    elif not np.isfinite(x).all():
        found.append(f"x must be finite; {int((~np.isfinite(x)).any(axis=(1, 2)).sum()):,} windows are not")
    for name, array, low, high in (("y", y, 0, _CLASSES - 1), ("subject", subject, 1, 255)):
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.shape != x.shape[:1]:
            found.append(f"{name} must be a whole number for each window of x, found {_words(array)}")
        elif len(array) and not low <= array.min() <= array.max() <= high:
            found.append(f"{name} must be {low} to {high}, found {array.min()} to {array.max()}")
    problems += [f"{path}: {problem}; copy it again" for problem in found]
    return None if found else (x.astype(np.float32), y.astype(np.int64), subject.astype(np.int64))


def _words(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} of shape {'x'.join(map(str, array.shape))}"


def _rows(labels: IntArray, people: IntArray) -> tuple[IntArray, IntArray]:
    """The training and the test windows, ascending."""
    train, test = [], []
    for group in np.unique(people * _CLASSES + labels):
        members = np.flatnonzero(people * _CLASSES + labels == group)
        cut = len(members) * _TRAIN_PERCENT // 100
        train.append(members[:cut])
        test.append(members[cut + _GAP_WINDOWS :])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
