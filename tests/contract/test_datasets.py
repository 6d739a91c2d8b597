"""What every data set of `DATASETS` obeys, on files of the real formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.data_files import write_fashion, write_jpeg

from fedhybrid.data import DATASETS, Dataset, load_dataset

WRITERS: dict[str, Callable[[Path], object]] = {
    "cifar10": lambda root: write_jpeg(root / "cifar10-from-jpeg", count=20),
    "digits": lambda root: None,
    "fashion-mnist": lambda root: write_fashion(root, train=20, test=20),
}


@pytest.fixture(scope="module", params=sorted(DATASETS))
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data")
    WRITERS[request.param](root)
    first, second = load_dataset(request.param, root), load_dataset(request.param, root)
    assert torch.equal(first.train.images, second.train.images), "the same files give the same data set"
    assert torch.equal(first.test.labels, second.test.labels)
    return first


def test_types_and_shapes(data: Dataset) -> None:
    for split in (data.train, data.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (len(split), *data.input_shape)
        assert split.labels.dtype == torch.int64
        assert split.images.is_contiguous()
        assert len(split.mean) == len(split.std) == data.input_shape[0]


def test_every_class_is_in_both_halves(data: Dataset) -> None:
    for split in (data.train, data.test):
        assert split.labels.unique().tolist() == list(range(data.classes))


def test_batches_of_the_training_half_have_mean_0_and_deviation_1(data: Dataset) -> None:
    x, y = data.train.batch(slice(None))
    assert x.dtype == torch.float32
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(x.shape[1]), atol=1e-3)
    assert torch.allclose(x.std(dim=(0, 2, 3)), torch.ones(x.shape[1]), atol=1e-3)
    assert torch.equal(y, data.train.labels)


def test_a_batch_shares_no_memory_with_the_data(data: Dataset) -> None:
    before = data.train.labels[0].item()
    _, y = data.train.batch(slice(0, 2))
    y.fill_(-1)
    assert data.train.labels[0].item() == before


def test_no_training_image_of_the_digits_is_a_test_image() -> None:
    digits = load_dataset("digits")
    train = {image.numpy().tobytes() for image in digits.train.images}
    assert sum(image.numpy().tobytes() in train for image in digits.test.images) == 0
    assert len(digits.train) + len(digits.test) == 1797
    counts = digits.train.labels.bincount() / (digits.train.labels.bincount() + digits.test.labels.bincount())
    assert torch.allclose(counts, torch.full((10,), 0.8), atol=0.01), "stratified"
