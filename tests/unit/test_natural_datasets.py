"""Data sets whose clients are people: who gets which samples, and what damaged files are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data_files import write_har, write_roles

from fedhybrid.data import Dataset, SignalSplit, TextSplit, load_dataset, partition_data
from fedhybrid.errors import ConfigError


@pytest.mark.parametrize("subfolder", ["uci-har-subset", "."])
def test_har_pools_both_files_and_divides_each_activity(tmp_path: Path, subfolder: str) -> None:
    stored = write_har(tmp_path / subfolder, people=3, windows=10)
    data = load_dataset("uci-har", tmp_path)
    assert (data.name, data.input_shape, data.classes) == ("uci-har (subset)", (9, 128), 6)
    assert isinstance(data.train, SignalSplit)
    assert isinstance(data.test, SignalSplit)
    assert data.natural_ids is not None
    x = np.concatenate([stored[half]["x"] for half in ("train", "test")])
    # Eight of ten windows are for training, the ninth is left out, the tenth is for the test.
    place = np.arange(len(x)) % 10
    assert np.array_equal(data.train.signals.numpy(), x[place < 8])
    assert np.array_equal(data.test.signals.numpy(), x[place == 9])
    assert np.bincount(data.natural_ids).tolist() == [0, 48, 48, 48]
    assert data.test_ids is not None
    assert np.bincount(data.test_ids).tolist() == [0, 6, 6, 6]


def test_har_is_normalised_by_the_training_half(tmp_path: Path) -> None:
    write_har(tmp_path)
    data = load_dataset("uci-har", tmp_path)
    assert isinstance(data.train, SignalSplit)
    assert isinstance(data.test, SignalSplit)
    signals = data.train.signals.double()
    assert data.train.mean == pytest.approx(signals.mean(dim=(0, 2)).tolist(), rel=1e-9)
    assert data.train.std == pytest.approx(signals.std(dim=(0, 2), correction=0).tolist(), rel=1e-9)
    assert data.test.mean == data.train.mean
    mean, std = (torch.tensor(figure).view(1, 9, 1) for figure in (data.train.mean, data.train.std))
    x, _ = data.test.batch(torch.tensor([2, 0]))
    assert torch.allclose(x, (data.test.signals[[2, 0]] - mean) / std, atol=1e-5)


def test_damaged_har_files_are_all_reported(tmp_path: Path) -> None:
    stored = write_har(tmp_path)
    train, test = stored["train"], stored["test"]
    x = train["x"].copy()
    x[3, 0, 0] = np.nan
    np.savez(tmp_path / "train.npz", **train | {"x": x, "y": train["y"] + 1})
    np.savez(tmp_path / "test.npz", **test | {"subject": test["subject"][:-1], "x": test["x"][:, :, :64]})
    with pytest.raises(ConfigError) as caught:
        load_dataset("uci-har", tmp_path)
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "train.npz: x must be finite; 1 windows are not" in told
    assert "train.npz: y must be 0 to 5, found 1 to 6" in told
    assert "test.npz: x must be floats of n x 9 x 128, n at least 1; found float32 of shape 60x9x64" in told
    assert "test.npz: subject must be a whole number for each window of x" in told
    np.savez(tmp_path / "train.npz", x=x)
    (tmp_path / "test.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ConfigError) as caught:
        load_dataset("uci-har", tmp_path)
    assert len(caught.value.problems) == 2
    assert "subject missing, found x" in caught.value.problems[0]


def test_har_with_too_few_windows_is_refused(tmp_path: Path) -> None:
    write_har(tmp_path, windows=4)
    with pytest.raises(ConfigError, match="too few windows"):
        load_dataset("uci-har", tmp_path)


def texts_of(split: TextSplit, alphabet: str, rows: slice = slice(None)) -> list[str]:
    x, y = split.batch(rows)
    return [
        "".join(alphabet[c] for c in [*window, label]) for window, label in zip(x.tolist(), y.tolist(), strict=True)
    ]


def shakespeare(root: Path) -> tuple[Dataset, TextSplit, TextSplit]:
    data = load_dataset("shakespeare", root)
    assert isinstance(data.train, TextSplit)
    assert isinstance(data.test, TextSplit)
    return data, data.train, data.test


def test_shakespeare_windows_are_the_roles_text(tmp_path: Path) -> None:
    roles = write_roles(tmp_path / "shakespeare", {"A": 1200, "B": 100, "C": 600})
    data, train, test = shakespeare(tmp_path)
    alphabet = "".join(sorted(set("".join(roles.values()))))
    assert (data.input_shape, data.classes) == ((80,), len(alphabet))
    assert "!" in alphabet, "of the whole file, though only the last character of a role"
    assert data.natural_ids is not None
    assert data.test_ids is not None
    assert set(data.natural_ids.tolist()) == {0, 1}, "B is too short to be a client"
    for number, role in enumerate(("A", "C")):
        text, cut = roles[role], len(roles[role]) * 80 // 100
        expected = [text[i : i + 81] for i in range(0, cut - 80, 8)]
        found = [t for t, owner in zip(texts_of(train, alphabet), data.natural_ids, strict=True) if owner == number]
        assert found == expected
        expected = [text[i : i + 81] for i in range(cut - 80, len(text) - 80, 32)]
        found = [t for t, owner in zip(texts_of(test, alphabet), data.test_ids, strict=True) if owner == number]
        assert found == expected
        assert found


def test_no_character_asked_for_in_the_test_was_seen_in_training(tmp_path: Path) -> None:
    write_roles(tmp_path)
    _, train, test = shakespeare(tmp_path)
    seen = {place for start in train.starts.tolist() for place in range(start, start + 81)}
    assert not seen & {start + 80 for start in test.starts.tolist()}


def test_shakespeare_is_one_copy_of_the_text(tmp_path: Path) -> None:
    write_roles(tmp_path, {"A": 50_000})
    _, train, test = shakespeare(tmp_path)
    assert train.text is test.text
    assert train.text.dtype == torch.uint8
    assert train.text.numel() == 50_000
    windows = train._windows
    assert windows.untyped_storage().data_ptr() == train.text.untyped_storage().data_ptr()


def test_a_large_alphabet_needs_more_than_a_byte(tmp_path: Path) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300))) * 3
    content = {"users": ["A"], "user_data": {"A": {"lines": [text]}}}
    (tmp_path / "roles.json").write_text(json.dumps(content), encoding="utf-8")
    data, train, _ = shakespeare(tmp_path)
    assert data.classes == 300
    assert texts_of(train, "".join(sorted(set(text))), slice(0, 1)) == [text[:81]]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"users": ["A"], "user_data": {}}', "KeyError: 'A'"),
        ('{"users": ["A"], "user_data": {"A": {"lines": "text"}}}', "lines must be a list"),
        ('{"users": ["A"], "user_data": {"A": {"lines": [1]}}}', "TypeError"),
        ('{"users": ["A"], "user_data": {"A": {"lines": ["\\ud800"]}}}', "surrogates"),
    ],
)
def test_damaged_roles(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "roles.json").write_text(content)
    with pytest.raises(ConfigError, match="needs JSON of the form") as caught:
        load_dataset("shakespeare", tmp_path)
    assert told in str(caught.value)


def test_roles_that_are_all_too_short(tmp_path: Path) -> None:
    write_roles(tmp_path, {"A": 300, "B": 410})
    with pytest.raises(ConfigError, match="the longest has 410 characters"):
        load_dataset("shakespeare", tmp_path)
    (tmp_path / "roles.json").write_text('{"users": [], "user_data": {}}')
    with pytest.raises(ConfigError, match="the longest has 0 characters"):
        load_dataset("shakespeare", tmp_path)


@pytest.mark.parametrize("name", ["shakespeare", "uci-har"])
def test_natural_clients_can_be_dealt(tmp_path: Path, name: str) -> None:
    write: Any = write_roles if name == "shakespeare" else write_har
    write(tmp_path)
    data = load_dataset(name, tmp_path)
    assert data.natural_ids is not None
    people = np.unique(data.natural_ids)
    shards = partition_data(
        "natural",
        data.train.labels.numpy(),
        clients=len(people),
        seed=0,
        alpha=1.0,
        natural_ids=data.natural_ids,
    )
    assert [np.unique(data.natural_ids[shards[i]]).tolist() for i in range(len(shards))] == [[p] for p in people]
