"""The embedded data set: scikit-learn's bundled handwritten digits, enlarged to 32 x 32.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (its
test part, 1,797 images of 8 x 8 with values 0 to 16, as scikit-learn ships it).
Differs: scikit-learn gives no split; ours is stratified, 80 % of each class for training, the same on every machine.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.data.split import Dataset
from fedhybrid.data.statistics import image_halves
from fedhybrid.records import IntArray

__all__ = ["load_digits"]

_SIDE = 32
_SPLIT_SEED = 20_241_104  # part of the data set's definition: another value is another data set
_TRAIN_RATIO = 0.8


def load_digits(root: Path | None = None) -> Dataset:
    """The digits, one channel. Needs no folder; `root` is accepted because every loader takes it, and not read."""
    pixels, labels = _bundled()
    small = torch.from_numpy(pixels).view(-1, 1, 8, 8)
    large = F.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    images = (large * (255 / 16)).round().clamp(0, 255).to(torch.uint8)

    rng = np.random.default_rng(_SPLIT_SEED)
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = round(_TRAIN_RATIO * len(members))
        train.append(members[:cut])
        test.append(members[cut:])
    train_rows, test_rows = (torch.from_numpy(np.sort(np.concatenate(rows))) for rows in (train, test))

    targets = torch.from_numpy(labels)
    first, second = image_halves((images[train_rows], targets[train_rows]), (images[test_rows], targets[test_rows]))
    return Dataset(name="digits", train=first, test=second, classes=10)


def _bundled() -> tuple[NDArray[np.float32], IntArray]:
    """Pixels (n, 64), 0 to 16, and labels, straight from scikit-learn's file: importing it all takes over a second."""
    package = find_spec("sklearn")
    file = Path((package and package.origin) or "").parent / "datasets/data/digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
        return np.ascontiguousarray(table[:, :-1]), table[:, -1].astype(np.int64)
    # Another version may keep it elsewhere.
    from sklearn.datasets import load_digits as bundled_digits  # noqa: PLC0415

    bundle = bundled_digits()
    return np.asarray(bundle.data, dtype=np.float32), np.asarray(bundle.target, dtype=np.int64)
