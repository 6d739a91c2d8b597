"""The real data sets, where they lie: in the folder that FEDHYBRID_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fedhybrid.data import load_dataset

ROOT = Path(os.environ.get("FEDHYBRID_DATA") or "FEDHYBRID_DATA is not set")


@pytest.mark.skipif(not (ROOT / "FashionMNIST" / "raw").is_dir(), reason="needs FEDHYBRID_DATA with FashionMNIST/raw")
def test_fashion_mnist() -> None:
    data = load_dataset("fashion-mnist", ROOT)
    assert (len(data.train), len(data.test), data.input_shape) == (60_000, 10_000, (1, 28, 28))
    assert data.train.labels.bincount().tolist() == [6000] * 10
    # The published statistics of the training images.
    assert data.train.mean == pytest.approx((0.2860,), abs=5e-5)
    assert data.train.std == pytest.approx((0.3530,), abs=5e-5)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "cifar10-from-jpeg").is_dir(), reason="needs FEDHYBRID_DATA with cifar10-from-jpeg")
def test_cifar10_from_jpeg() -> None:
    data = load_dataset("cifar10", ROOT)
    assert data.name == "cifar10-from-jpeg"
    assert (len(data.train), len(data.test), data.input_shape) == (50_000, 10_000, (3, 32, 32))
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.train.mean == pytest.approx((0.4913, 0.4821, 0.4465), abs=5e-5)
    assert data.train.std == pytest.approx((0.2452, 0.2428, 0.2606), abs=5e-5)


@pytest.mark.skipif(not (ROOT / "uci-har-subset").is_dir(), reason="needs FEDHYBRID_DATA with uci-har-subset")
def test_uci_har() -> None:
    data = load_dataset("uci-har", ROOT)
    assert data.name == "uci-har (subset)"
    assert (len(data.train), len(data.test), data.input_shape) == (2_611, 559, (9, 128))
    assert data.natural_ids is not None
    assert data.test_ids is not None
    for ids, split in ((data.natural_ids, data.train), (data.test_ids, data.test)):
        assert np.unique(ids).tolist() == list(range(1, 31))
        pairs = np.unique(ids * 6 + split.labels.numpy())
        assert len(pairs) == 180, "everybody does everything, in both halves"


@pytest.mark.skipif(not (ROOT / "shakespeare").is_dir(), reason="needs FEDHYBRID_DATA with shakespeare")
def test_shakespeare() -> None:
    data = load_dataset("shakespeare", ROOT)
    assert (len(data.train), len(data.test), data.input_shape, data.classes) == (403_901, 26_133, (80,), 76)
    assert data.natural_ids is not None
    assert data.test_ids is not None
    assert len(np.unique(data.natural_ids)) == len(np.unique(data.test_ids)) == 823
    assert np.bincount(data.natural_ids).min() == 32


@pytest.mark.skipif(not (ROOT / "shakespeare").is_dir(), reason="needs FEDHYBRID_DATA with shakespeare")
def test_shakespeare_plays() -> None:
    data = load_dataset("shakespeare-plays", ROOT)
    assert (len(data.train), len(data.test), data.input_shape) == (33_969, 3_773, (64,))
    assert (data.classes, data.tokens) == (36, 2048)
    assert data.natural_ids is not None
    assert data.test_ids is not None
    assert len(np.unique(data.natural_ids)) == len(np.unique(data.test_ids)) == 472
    assert np.bincount(data.natural_ids).min() == 12
    for split in (data.train, data.test):
        assert len(split.labels.unique()) == 36
        x, _ = split.batch(slice(None))
        known = float((x > 0).float().mean())
        assert known == pytest.approx(0.863, abs=0.01), "most words are known, and no fewer in the test"
