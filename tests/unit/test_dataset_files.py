"""Damaged, missing and misplaced data files give one clear line each; sound ones give the pixels that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data_files import write_binary, write_fashion, write_idx, write_jpeg

from fedhybrid.data import DATASETS, load_dataset
from fedhybrid.errors import ConfigError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDHYBRID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("subfolder", ["FashionMNIST/raw", "raw", "."])
def test_fashion_mnist_is_found_in_each_place(tmp_path: Path, subfolder: str) -> None:
    images, labels = write_fashion(tmp_path / subfolder)
    data = load_dataset("fashion-mnist", tmp_path)
    assert data.input_shape == (1, 28, 28)
    assert np.array_equal(data.train.images[:, 0].numpy(), images)
    assert np.array_equal(data.train.labels.numpy(), labels)
    assert len(data.test) == 5


def test_batches_are_normalised_by_the_training_half(tmp_path: Path) -> None:
    write_fashion(tmp_path, train=200)
    data = load_dataset("fashion-mnist", tmp_path)
    x, y = data.train.batch(slice(None))
    pixels = data.train.images.double() / 255
    assert data.train.mean == pytest.approx([float(pixels.mean())], rel=1e-12)
    assert data.train.std == pytest.approx([float(pixels.std(correction=0))], rel=1e-9)
    assert data.test.mean == data.train.mean
    expected = (pixels - data.train.mean[0]) / data.train.std[0]
    assert torch.allclose(x.double(), expected, atol=1e-5)
    assert x.is_contiguous()
    assert y.dtype == torch.int64
    chosen, labels = data.train.batch(torch.tensor([7, 3]))
    assert torch.equal(chosen, x[[7, 3]])
    assert torch.equal(labels, y[[7, 3]])


def test_missing_folder_and_files_are_named(tmp_path: Path) -> None:
    for name in sorted(set(DATASETS) - {"digits"}):
        with pytest.raises(ConfigError, match=r"data\.root=DIR"):
            load_dataset(name, None)
        with pytest.raises(ConfigError, match="is not a folder"):
            load_dataset(name, tmp_path / "nowhere")
        with pytest.raises(ConfigError, match=r"data\.root=DIR"):
            load_dataset(name, tmp_path)
    write_fashion(tmp_path / "raw")
    (tmp_path / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigError, match="raw lacks t10k-labels-idx1-ubyte"):
        load_dataset("fashion-mnist", tmp_path)


def test_damaged_idx_files_are_all_reported(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x1f\x8b\x08\x00")  # a gzip header
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-2])
    with pytest.raises(ConfigError) as caught:
        load_dataset("fashion-mnist", tmp_path)
    assert len(caught.value.problems) == 2
    assert "found 1f8b0800" in caught.value.problems[0]
    assert "promises 5 bytes" in caught.value.problems[1]


def test_idx_labels_must_match_images_and_classes(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(11, 10))
    with pytest.raises(ConfigError) as caught:
        load_dataset("fashion-mnist", tmp_path)
    assert "12 images" in caught.value.problems[0]
    assert "0 to 9" in caught.value.problems[1]


def test_the_original_cifar10_wins_over_the_copy(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "cifar10-from-jpeg")
    assert load_dataset("cifar10", tmp_path).name == "cifar10-from-jpeg"
    first = write_binary(tmp_path / "cifar-10-batches-bin")
    data = load_dataset("cifar10", tmp_path)
    assert data.name == "cifar10"
    assert (len(data.train), len(data.test), data.input_shape) == (15, 3, (3, 32, 32))
    assert np.array_equal(data.train.images[:3].numpy().reshape(3, -1), first[:, 1:])
    assert np.array_equal(data.train.labels[:3].numpy(), first[:, 0])


def test_jpeg_pixels_are_as_pillow_decodes_them(tmp_path: Path) -> None:
    decoded = write_jpeg(tmp_path)
    images = load_dataset("cifar10", tmp_path).train.images
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(decoded))


def test_damaged_cifar10_files(tmp_path: Path) -> None:
    write_binary(tmp_path / "original")
    for name in ("data_batch_2.bin", "data_batch_4.bin"):
        (tmp_path / "original" / name).write_bytes(b"\x00" * 3000)
    with pytest.raises(ConfigError) as caught:
        load_dataset("cifar10", tmp_path / "original")
    assert len(caught.value.problems) == 2

    write_jpeg(tmp_path / "small", side=16)
    with pytest.raises(ConfigError, match="must be 32 x 32 pixels, found 16 x 16"):
        load_dataset("cifar10", tmp_path / "small")

    write_jpeg(tmp_path / "copy")
    stored = dict(np.load(tmp_path / "copy" / "train.npz"))
    np.savez(tmp_path / "copy" / "train.npz", **stored | {"y": stored["y"] + 9, "offsets": stored["offsets"][::-1]})
    with pytest.raises(ConfigError) as caught:
        load_dataset("cifar10", tmp_path / "copy")
    assert "offsets must rise" in caught.value.problems[0]
    assert "labels must be 0 to 9" in caught.value.problems[1]

    np.savez(tmp_path / "copy" / "train.npz", **stored | {"jpeg": np.zeros_like(stored["jpeg"])})
    with pytest.raises(ConfigError, match="image 0 cannot be decoded"):
        load_dataset("cifar10", tmp_path / "copy")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    write_jpeg(tmp_path)
    np.savez(tmp_path / "train.npz", jpeg=np.array([{}], dtype=object), offsets=np.zeros(2), y=np.zeros(1))
    with pytest.raises(ConfigError, match="not a file with the arrays"):
        load_dataset("cifar10", tmp_path)
    (tmp_path / "train.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="not a file with the arrays"):
        load_dataset("cifar10", tmp_path)
