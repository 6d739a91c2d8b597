"""CIFAR-10: the original in its binary version, or a JPEG copy of it, whichever lies below the folder.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009. The binary
version is six files of records of 3,073 bytes: the label, then 1,024 bytes each of red, green and blue.

The JPEG copy (`train.npz`, `test.npz` with `jpeg`, `offsets`, `y`) is lossy, so the data set it gives is called
"cifar10-from-jpeg" and results on it are not results on CIFAR-10. Its images are decoded once, kept as
`data.cache` says, and mapped from there afterwards. The version in Python pickles is not read: loading a
pickle runs whatever code it holds.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fedhybrid.data.cache import mapped
from fedhybrid.data.files import find_folder, read_npz, require_root
from fedhybrid.data.split import Dataset
from fedhybrid.data.statistics import image_halves
from fedhybrid.errors import ConfigError

__all__ = ["load_cifar10"]

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_CLASSES = 10
_BINARY_FOLDERS = ("cifar-10-batches-bin", ".")
_BINARY_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_BINARY_TEST = ("test_batch.bin",)
_JPEG_FOLDERS = ("cifar10-from-jpeg", ".")
_JPEG_FILES = ("train.npz", "test.npz")
_JPEG_ARRAYS = ("jpeg", "offsets", "y")

_Half = tuple[Tensor, Tensor]


def load_cifar10(root: Path | None = None) -> Dataset:
    """CIFAR-10 from below `root`: the original if it is there in binary form, else the JPEG copy.

    Raises:
        ConfigError: Neither is complete, or a file is damaged.
    """
    root = require_root("cifar10", root, f"{_BINARY_FOLDERS[0]}/*.bin or {_JPEG_FOLDERS[0]}/*.npz")
    folder, no_binary = find_folder(root, _BINARY_FOLDERS, (*_BINARY_TRAIN, *_BINARY_TEST))
    if folder is not None:
        return _dataset(
            "cifar10",
            _read_binary([folder / name for name in _BINARY_TRAIN]),
            _read_binary([folder / name for name in _BINARY_TEST]),
        )
    folder, no_jpeg = find_folder(root, _JPEG_FOLDERS, _JPEG_FILES)
    if folder is None:
        raise ConfigError(
            f"dataset 'cifar10': {no_binary}; and {no_jpeg}; give the folder above the files with data.root=DIR "
            "(the version in Python pickles is not read: take the binary version)"
        )
    return _dataset("cifar10-from-jpeg", *(_read_jpeg(folder / name) for name in _JPEG_FILES))


def _dataset(name: str, train: _Half, test: _Half) -> Dataset:
    first, second = image_halves(train, test)
    return Dataset(name=name, train=first, test=second, classes=_CLASSES)


def _read_binary(paths: list[Path]) -> _Half:
    """Images and labels of the records of all files, in order."""
    problems: list[str] = []
    parts: list[NDArray[np.uint8]] = []
    for path in paths:
        raw = np.fromfile(path, dtype=np.uint8)
        if len(raw) == 0 or len(raw) % (1 + _PIXELS):
            problems.append(
                f"{path}: must hold records of {1 + _PIXELS:,} bytes, has {len(raw):,} bytes; copy it again"
            )
            continue
        records = raw.reshape(-1, 1 + _PIXELS)
        if records[:, 0].max() >= _CLASSES:
            problems.append(f"{path}: a record's first byte must be a label 0 to 9, found {records[:, 0].max()}")
        parts.append(records)
    if problems:
        raise ConfigError(problems)
    records = np.concatenate(parts)
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, *_SHAPE)
    return torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64))


def _read_jpeg(path: Path) -> _Half:
    """Images and labels of one `.npz`: JPEG bytes one after the other, n + 1 offsets, n labels."""
    labels = read_npz(path, _JPEG_ARRAYS, only="y")["y"].astype(np.int64)
    images = mapped(
        f"{_JPEG_FOLDERS[0]}-{path.stem}",
        path,
        (len(labels), *_SHAPE),
        lambda: _decode_all(path),  # which checks the labels, too: a file that is decoded already was sound
        maker=f"pillow {PIL.__version__}",
    )
    return torch.from_numpy(images), torch.from_numpy(labels)


def _decode_all(path: Path) -> NDArray[np.uint8]:
    """The images of a file that is found to be sound."""
    stored = read_npz(path, _JPEG_ARRAYS)
    data, offsets, labels = stored["jpeg"], stored["offsets"].astype(np.int64), stored["y"].astype(np.int64)
    count = len(labels)
    problems = []
    if len(offsets) != count + 1:
        problems.append(f"{path}: {count:,} labels need {count + 1:,} offsets, found {len(offsets):,}")
    elif count == 0 or offsets[0] != 0 or offsets[-1] != len(data) or np.any(np.diff(offsets) <= 0):
        problems.append(f"{path}: offsets must rise from 0 to the {len(data):,} bytes of jpeg, with at least one image")
    if count and (labels.min() < 0 or labels.max() >= _CLASSES):
        problems.append(f"{path}: labels must be 0 to {_CLASSES - 1}, found {labels.min()} to {labels.max()}")
    if problems:
        raise ConfigError(problems)
    images = np.empty((count, *_SHAPE), dtype=np.uint8)
    for i in range(count):
        images[i] = _decode(data[offsets[i] : offsets[i + 1]].tobytes(), f"{path}: image {i}")
    return images


def _decode(jpeg: bytes, where: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{where} cannot be decoded: {error}") from error
    if pixels.shape != (32, 32, 3):
        raise ConfigError(f"{where} must be 32 x 32 pixels, found {pixels.shape[0]} x {pixels.shape[1]}")
    return pixels.transpose(2, 0, 1)
