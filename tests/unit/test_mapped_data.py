"""Big data sets stay in files: mapped where they lie, or decoded once into a cache and mapped from there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data_files import write_fashion, write_jpeg

from fedhybrid.data import ImageSplit, load_dataset
from fedhybrid.data import cifar10 as cifar10_module

MAPS = Path("/proc/self/maps")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDHYBRID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def train_images(name: str, root: Path) -> torch.Tensor:
    train = load_dataset(name, root).train
    assert isinstance(train, ImageSplit)
    return train.images


def assert_mapped_from(images: torch.Tensor, path: Path) -> None:
    """The tensor's memory is the file's, as the operating system sees it."""
    if not MAPS.exists():
        pytest.skip("needs /proc")
    for line in MAPS.read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= images.data_ptr() < end:
            assert line.endswith(str(path))
            return
    raise AssertionError("the tensor lies nowhere")


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    decoded: list[str] = []
    decode = cifar10_module._decode

    def counted(jpeg: bytes, where: str) -> np.ndarray:
        decoded.append(where)
        return decode(jpeg, where)

    monkeypatch.setattr(cifar10_module, "_decode", counted)
    return decoded


def test_fashion_mnist_stays_in_its_file(tmp_path: Path) -> None:
    written, _ = write_fashion(tmp_path)
    images = train_images("fashion-mnist", tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    assert_mapped_from(images, path)
    before = path.read_bytes()
    images.zero_()
    assert path.read_bytes() == before, "who writes to the tensor gets pages of his own"
    assert np.array_equal(train_images("fashion-mnist", tmp_path)[:, 0].numpy(), written)


def test_images_are_decoded_once_and_mapped(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, decoded = write_jpeg(tmp_path / "data"), count_decoded(monkeypatch)
    first = train_images("cifar10", tmp_path / "data")
    assert len(decoded) == 8
    (stored,) = cache.glob("cifar10-from-jpeg-train-*.npy")
    assert_mapped_from(first, stored)
    again = train_images("cifar10", tmp_path / "data")
    assert len(decoded) == 8
    assert_mapped_from(again, stored)
    assert np.array_equal(again.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert len(list(cache.iterdir())) == 2, "nothing half-written is left"


def test_another_source_is_decoded_anew(tmp_path: Path, cache: Path) -> None:
    write_jpeg(tmp_path / "data", count=4)
    train_images("cifar10", tmp_path / "data")
    other = write_jpeg(tmp_path / "data", count=6)
    assert np.array_equal(train_images("cifar10", tmp_path / "data").permute(0, 2, 3, 1).numpy(), np.stack(other))
    assert len(list(cache.glob("*-train-*.npy"))) == 2


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path, content: bytes | None) -> None:
    expected = write_jpeg(tmp_path / "data")
    train_images("cifar10", tmp_path / "data")
    (stored,) = cache.glob("*-train-*.npy")
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-100] if content is None else content)
    images = train_images("cifar10", tmp_path / "data")
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert stored.read_bytes() == whole


def test_without_a_folder_to_write_to_everything_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, decoded = write_jpeg(tmp_path / "data"), count_decoded(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEDHYBRID_CACHE", str(tmp_path / "file" / "cache"))
    for times in (1, 2):
        images = train_images("cifar10", tmp_path / "data")
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
        assert len(decoded) == times * 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]


def test_the_users_cache_folder_is_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jpeg(tmp_path / "data")
    monkeypatch.delenv("FEDHYBRID_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    train_images("cifar10", tmp_path / "data")
    assert len(list((tmp_path / "home" / ".cache" / "fedhybrid").iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    train_images("cifar10", tmp_path / "data")
    assert len(list((tmp_path / "xdg" / "fedhybrid").iterdir())) == 2
