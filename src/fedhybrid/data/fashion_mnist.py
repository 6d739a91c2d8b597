"""Fashion-MNIST from its four idx files.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017, https://arxiv.org/abs/1708.07747. The idx format is described with MNIST (LeCun, Cortes, Burges):
two zero bytes, a type code, the number of dimensions, each dimension as a big-endian int32, then the elements.

The images stay in their files, which are mapped: processes that read the same files share their pages.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhybrid.data.files import find_folder, require_root
from fedhybrid.data.split import Dataset
from fedhybrid.data.statistics import image_halves
from fedhybrid.errors import ConfigError

__all__ = ["load_fashion_mnist", "read_idx"]

_UNSIGNED_BYTE = 8
_SUBFOLDERS = ("FashionMNIST/raw", "raw", ".")
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CLASSES = 10


def load_fashion_mnist(root: Path | None = None) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images, 1 x 28 x 28, from below `root`.

    Raises:
        ConfigError: A file is missing or is not what its name says; all problems at once.
    """
    root = require_root("fashion-mnist", root, f"{_SUBFOLDERS[0]}/{_FILES[0]} and its three companions")
    folder, missing = find_folder(root, _SUBFOLDERS, _FILES)
    if folder is None:
        raise ConfigError(
            f"dataset 'fashion-mnist': {missing}; give the folder with the unpacked idx files with data.root=DIR"
        )
    problems: list[str] = []
    halves = [_read_half(folder / _FILES[i], folder / _FILES[i + 1], problems) for i in (0, 2)]
    if problems:
        raise ConfigError(problems)
    train, test = image_halves(halves[0], halves[1])
    return Dataset(name="fashion-mnist", train=train, test=test, classes=_CLASSES)


def _read_half(images_path: Path, labels_path: Path, problems: list[str]) -> tuple[Tensor, Tensor]:
    """Images (n, 1, h, w) and labels (n,); what is wrong goes to `problems`."""
    try:
        images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    except ConfigError as error:
        problems.extend(error.problems)
        return torch.empty(0), torch.empty(0)
    if len(images) != len(labels):
        problems.append(f"{images_path} has {len(images):,} images, {labels_path} has {len(labels):,} labels")
    if len(labels) == 0 or labels.max() >= _CLASSES:
        problems.append(f"{labels_path}: labels must be 0 to {_CLASSES - 1}, at least one; the file is damaged")
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes with that many dimensions, mapped; writing to it does not change the file.

    Raises:
        ConfigError: Wrong magic number or length.
    """
    empty = path.stat().st_size == 0  # which cannot be mapped
    raw = np.empty(0, dtype=np.uint8) if empty else np.memmap(path, dtype=np.uint8, mode="c")
    header_bytes = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if len(raw) < header_bytes or raw[:4].tobytes() != magic:
        raise ConfigError(
            f"{path}: not an idx file of {dimensions} dimension(s): its first four bytes must be {magic.hex()}, "
            f"found {raw[:4].tobytes().hex() or 'nothing'}; unpack it first if it is compressed"
        )
    shape = tuple(int(side) for side in raw[4:header_bytes].view(">i4"))
    if len(raw) - header_bytes != math.prod(shape):
        raise ConfigError(
            f"{path}: its header promises {math.prod(shape):,} bytes of data ({' x '.join(map(str, shape))}), "
            f"it has {len(raw) - header_bytes:,}; copy it again"
        )
    return raw[header_bytes:].reshape(shape)
