"""What every data set of `DATASETS` obeys, on files of the real formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits
from tests.data_files import write_fashion, write_har, write_jpeg, write_roles

from fedhybrid.data import DATASETS, Dataset, ImageSplit, SignalSplit, Split, TextSplit, load_dataset
from fedhybrid.data.digits import _bundled

WRITERS: dict[str, Callable[[Path], object]] = {
    "cifar10": lambda root: write_jpeg(root / "cifar10-from-jpeg", count=20),
    "digits": lambda root: None,
    "fashion-mnist": lambda root: write_fashion(root, train=20, test=20),
    "shakespeare": lambda root: write_roles(root / "shakespeare"),
    "shakespeare-plays": lambda root: write_roles(root, {"One_A": 4000, "One_B": 300, "Two_C": 5000, "One_D": 3000}),
    "uci-har": lambda root: write_har(root / "uci-har-subset"),
}
NATURAL = {"shakespeare", "shakespeare-plays", "uci-har"}


@pytest.fixture(scope="module", params=sorted(DATASETS))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Dataset]]:
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDHYBRID_CACHE", str(root / "cache"))
        WRITERS[request.param](root)
        first, second = load_dataset(request.param, root), load_dataset(request.param, root)
        assert torch.equal(everything(first.train)[0], everything(second.train)[0]), "the same files give the same data"
        assert torch.equal(first.test.labels, second.test.labels)
        yield request.param, first


@pytest.fixture
def data(named: tuple[str, Dataset]) -> Dataset:
    return named[1]


def everything(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.batch(slice(None))


def test_types_and_shapes(data: Dataset) -> None:
    assert data.input_shape == data.train.input_shape == data.test.input_shape
    for split in (data.train, data.test):
        x, y = everything(split)
        assert x.shape == (len(split), *data.input_shape)
        assert x.dtype == (torch.int64 if isinstance(split, TextSplit) else torch.float32)
        assert x.is_contiguous()
        assert split.labels.dtype == y.dtype == torch.int64
        assert torch.equal(y, split.labels)
        assert 0 <= int(y.min()) <= int(y.max()) < data.classes
        assert (data.tokens is not None) == isinstance(split, TextSplit)
        if data.tokens is not None:
            assert 0 <= int(x.min()) <= int(x.max()) < data.tokens
        if isinstance(split, ImageSplit):
            assert split.images.dtype == torch.uint8
            assert split.images.is_contiguous()


def test_a_batch_is_its_rows_by_number_and_by_slice(data: Dataset) -> None:
    for split in (data.train, data.test):
        x, y = everything(split)
        chosen = torch.tensor([3, 0, 3])
        some, labels = split.batch(chosen)
        assert torch.equal(some, x[chosen])
        assert torch.equal(labels, y[chosen])
        assert some.is_contiguous()
        part, labels = split.batch(slice(1, 4))
        assert torch.equal(part, x[1:4])
        assert torch.equal(labels, y[1:4])
        past_the_end, _ = split.batch(slice(len(split) - 2, len(split) + 5))
        assert torch.equal(past_the_end, x[-2:])


def test_every_class_of_few_is_in_both_halves(named: tuple[str, Dataset]) -> None:
    name, data = named
    if name == "shakespeare":
        pytest.skip("a rare character is in few windows")
    for split in (data.train, data.test):
        assert split.labels.unique().tolist() == list(range(data.classes))


def test_batches_of_the_training_half_have_mean_0_and_deviation_1(data: Dataset) -> None:
    if isinstance(data.train, TextSplit):
        pytest.skip("tokens are not normalised")
    assert isinstance(data.train, (ImageSplit, SignalSplit))
    x, _ = everything(data.train)
    assert len(data.train.mean) == len(data.train.std) == data.input_shape[0]
    dims = [d for d in range(x.dim()) if d != 1]
    assert torch.allclose(x.mean(dim=dims), torch.zeros(x.shape[1]), atol=1e-3)
    assert torch.allclose(x.std(dim=dims), torch.ones(x.shape[1]), atol=1e-3)


@pytest.mark.parametrize("indices", [slice(0, 2), torch.tensor([0, 1])], ids=["slice", "numbers"])
def test_a_batch_shares_no_memory_with_the_data(data: Dataset, indices: slice | torch.Tensor) -> None:
    before = [tensor.clone() for tensor in data.train.batch(slice(0, 2))]
    x, y = data.train.batch(indices)
    x.fill_(-1)
    y.fill_(-1)
    for now, then in zip(data.train.batch(slice(0, 2)), before, strict=True):
        assert torch.equal(now, then)


def test_people_are_known_where_the_data_name_them(named: tuple[str, Dataset]) -> None:
    name, data = named
    if name not in NATURAL:
        assert data.natural_ids is data.test_ids is None
        return
    assert data.natural_ids is not None
    assert data.test_ids is not None
    assert data.natural_ids.dtype == data.test_ids.dtype == np.int64
    assert (len(data.natural_ids), len(data.test_ids)) == (len(data.train), len(data.test))
    assert set(data.natural_ids.tolist()) == set(data.test_ids.tolist()), "everybody trains and is tested"
    assert len(set(data.natural_ids.tolist())) >= 2


def test_no_training_image_of_the_digits_is_a_test_image() -> None:
    digits = load_dataset("digits")
    assert isinstance(digits.train, ImageSplit)
    assert isinstance(digits.test, ImageSplit)
    train = {image.numpy().tobytes() for image in digits.train.images}
    assert sum(image.numpy().tobytes() in train for image in digits.test.images) == 0
    assert len(digits.train) + len(digits.test) == 1797
    counts = digits.train.labels.bincount() / (digits.train.labels.bincount() + digits.test.labels.bincount())
    assert torch.allclose(counts, torch.full((10,), 0.8), atol=0.01), "stratified"


def test_the_digits_are_scikit_learns() -> None:
    """They are read without its help, because importing it takes long."""
    bundle = sklearn_digits()
    pixels, labels = _bundled()
    assert np.array_equal(pixels, bundle.data)
    assert np.array_equal(labels, bundle.target)
    assert (pixels.dtype, labels.dtype) == (np.float32, np.int64)
