"""Data sets of Hugging Face `datasets`: saved in a folder, or fetched through flwr-datasets (here from local files)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedhybrid.data import ImageSplit, SignalSplit, find_loader, load_dataset, load_hub
from fedhybrid.errors import ConfigError

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def datasets(offline: None) -> Any:
    return pytest.importorskip("datasets")


def pixels(count: int, *shape: int) -> list[np.ndarray]:
    return list(np.random.default_rng(count).integers(0, 256, (count, *shape)).astype(np.uint8))


def images_of(datasets: Any, arrays: list[np.ndarray], **columns: Any) -> Any:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    features |= {name: datasets.Value("string" if isinstance(v[0], str) else "int64") for name, v in columns.items()}
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(a) for a in arrays], "label": [i % 3 for i in range(len(arrays))], **columns},
        features=datasets.Features(features),
    )


def test_images_of_a_saved_folder(datasets: Any, tmp_path: Path) -> None:
    train, test = pixels(12, 8, 10), pixels(6, 8, 10)
    halves = {"train": images_of(datasets, train), "test": images_of(datasets, test)}
    datasets.DatasetDict(halves).save_to_disk(str(tmp_path / "saved"))
    data = load_dataset("flwr:animals", tmp_path / "saved")
    assert (data.name, data.input_shape, data.classes) == ("flwr:animals", (1, 8, 10), 3)
    assert isinstance(data.train, ImageSplit)
    assert isinstance(data.test, ImageSplit)
    assert np.array_equal(data.train.images[:, 0].numpy(), np.stack(train))
    assert np.array_equal(data.test.images[:, 0].numpy(), np.stack(test))
    assert data.train.labels.tolist() == [i % 3 for i in range(12)]
    assert data.natural_ids is data.test_ids is None


def test_people_are_read_and_one_half_is_divided(datasets: Any, tmp_path: Path) -> None:
    arrays, writers = pixels(20, 8, 8, 3), ["zoe", "ann"] * 10
    images_of(datasets, arrays, writer_id=writers).save_to_disk(str(tmp_path / "saved"))
    data = load_dataset("flwr:letters", tmp_path / "saved")
    assert data.input_shape == (3, 8, 8)
    assert isinstance(data.train, ImageSplit)
    assert isinstance(data.test, ImageSplit)
    assert data.natural_ids is not None
    assert data.test_ids is not None
    assert data.natural_ids.tolist() == [1, 0] * 8, "numbered in the order of their names"
    assert data.test_ids.tolist() == [1, 0] * 2
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), np.stack(arrays[:16]))
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), np.stack(arrays[16:]))


def test_tables_and_columns_by_name(datasets: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"age": rng.integers(18, 90, 40).tolist(), "height": rng.normal(1.7, 0.1, 40).tolist()}
    table = columns | {"note": ["text"] * 40, "ward": [7, 3] * 20, "ill": ["yes", "no", "no", "yes"] * 10}
    datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "saved"))
    data = load_dataset("flwr:clinic?label=ill&client=ward", tmp_path / "saved")
    assert (data.name, data.input_shape, data.classes) == ("flwr:clinic", (2,), 2)
    assert isinstance(data.train, SignalSplit)
    expected = np.stack([columns["age"][:32], columns["height"][:32]], axis=1).astype(np.float32)
    assert np.array_equal(data.train.signals.numpy(), expected)
    assert data.train.labels.tolist() == [1, 0, 0, 1] * 8, "classes in the order of their names"
    assert data.natural_ids is not None
    assert data.natural_ids.tolist() == [1, 0] * 16
    x, _ = data.train.batch(slice(None))
    assert x.mean(dim=0).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert x.std(dim=0, correction=0).tolist() == pytest.approx([1, 1], rel=1e-5)


def test_without_people_each_class_is_divided(datasets: Any, tmp_path: Path) -> None:
    table = {"value": [float(i) for i in range(30)], "label": [0] * 20 + [5] * 10}
    datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "saved"))
    data = load_hub("sorted", tmp_path / "saved")
    assert data.train.labels.bincount().tolist() == [16, 8]
    assert data.test.labels.bincount().tolist() == [4, 2]


def test_through_flwr_datasets(datasets: Any, tmp_path: Path) -> None:
    pytest.importorskip("flwr_datasets")
    for half, count in (("train", 12), ("validation", 6)):
        table = {"value": [float(i) for i in range(count)], "label": [i % 2 for i in range(count)]}
        (tmp_path / "files").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / "files" / f"{half}.parquet"))
    data = load_dataset(f"flwr:{tmp_path / 'files'}")
    assert (len(data.train), len(data.test), data.input_shape, data.classes) == (12, 6, (1,), 2)
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    with pytest.raises(ConfigError, match=r"cannot be had from the hub.*datasets\.save_to_disk"):
        load_dataset(f"flwr:{tmp_path / 'nothing'}")


@pytest.mark.parametrize(
    ("columns", "address", "told"),
    [
        ({"a": [1.0] * 4}, "flwr:x", "which column is the label.*flwr:x.label=COLUMN.*Known: a"),
        ({"a": [1.0] * 4, "label": [0, 1] * 2}, "flwr:x?label=lable", "no column 'lable'.*Did you mean 'label'"),
        ({"a": [1.0] * 4, "label": [0, 1] * 2}, "flwr:x?client=who", "no column 'who' .client."),
        ({"a": [1.0] * 4, "label": [0.5] * 4}, "flwr:x", "'label' must hold truth values or whole numbers or texts"),
        ({"a": [1.0] * 4, "label": [0, None] * 2}, "flwr:x", "'label' must hold .* found objects"),
        ({"a": ["t"] * 4, "label": [0, 1] * 2}, "flwr:x", "neither a column of images nor columns of numbers"),
        ({"a": [1.0, None] * 2, "label": [0, 1] * 2}, "flwr:x", "'a' must hold .* found objects"),
        ({"a": [1.0, float("nan")] * 2, "label": [0, 1] * 2}, "flwr:x", "columns must hold finite numbers, a do not"),
        ({"a": [1.0, 2.0], "label": [0, 1]}, "flwr:x", "too few samples"),
    ],
)
def test_what_cannot_be_used_is_said(
    datasets: Any, tmp_path: Path, columns: dict[str, list[Any]], address: str, told: str
) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ConfigError, match=told):
        load_dataset(address, tmp_path / "saved")


def test_images_of_two_sizes(datasets: Any, tmp_path: Path) -> None:
    images_of(datasets, [*pixels(4, 8, 8), *pixels(4, 9, 8)]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ConfigError, match="images must have one size, found 8 x 8 and 9 x 8"):
        load_hub("mixed", tmp_path / "saved")


def test_a_folder_that_is_none(datasets: Any, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"data\.root to be a folder that datasets\.save_to_disk has written"):
            load_dataset("flwr:x", folder)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read from"):
        load_dataset("flwr:x", tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("datasets", "flwr_datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    for root in (None, tmp_path):
        with pytest.raises(ConfigError, match=r"pip install 'fedhybrid\[data\]'"):
            load_dataset("flwr:ylecun/mnist", root)


def test_names_are_checked_before_anything_is_fetched() -> None:
    with pytest.raises(ConfigError, match="needs a name behind it"):
        find_loader("flwr:")
    with pytest.raises(ConfigError) as caught:
        find_loader("flwr:?clint=a&size=3")
    assert len(caught.value.problems) == 3
    assert "Did you mean 'client'" in caught.value.problems[1]
    assert callable(find_loader("flwr:x?subset=a"))
    with pytest.raises(ConfigError, match="unknown dataset 'flower:x'"):
        find_loader("flower:x")
