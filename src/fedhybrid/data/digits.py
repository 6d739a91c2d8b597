"""The embedded data set: scikit-learn's bundled handwritten digits, enlarged to 32 x 32.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (its
test part, 1,797 images of 8 x 8 with values 0 to 16, as scikit-learn ships it).
Differs: scikit-learn gives no split; ours is stratified, 80 % of each class for training, the same on every machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.data.split import Dataset
from fedhybrid.data.statistics import image_halves

__all__ = ["load_digits"]

_SIDE = 32
_SPLIT_SEED = 20_241_104  # part of the data set's definition: another value is another data set
_TRAIN_RATIO = 0.8


def load_digits(root: Path | None = None) -> Dataset:
    """The digits, one channel. Needs no folder; `root` is accepted because every loader takes it, and not read."""
    # Not at the top: importing scikit-learn takes over a second, and most commands load no data.
    from sklearn.datasets import load_digits as bundled_digits  # noqa: PLC0415

    bundle = bundled_digits()
    labels = np.asarray(bundle.target, dtype=np.int64)
    small = torch.from_numpy(np.asarray(bundle.images, dtype=np.float32)).unsqueeze(1)
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
