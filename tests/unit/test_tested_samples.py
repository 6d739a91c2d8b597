"""`[evaluation] samples`: how much of the test set is asked, and which part."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data_files import write_har
from tests.run_parts import small

import fedhybrid as fh
from fedhybrid.data import Dataset, chosen, load_dataset
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import build_federation, load_config
from fedhybrid.experiment.build import Datasets
from fedhybrid.experiment.check import variants_of
from fedhybrid.experiment.samples import federated_data

ASKED = 40


def asking(samples: int | None = ASKED, **changes: Any) -> dict[str, Any]:
    """A round on the digits whose model is tested on so many of them."""
    evaluation = {} if samples is None else {"samples": samples}
    work = {"batch_size": 8, "steps": 1}
    return small(**{"method": "fedavg", "rounds": 1, "train": work, "evaluation": evaluation} | changes)


def numbered(whole: Dataset) -> Dataset:
    """The data set where each test sample has its own number as its person's."""
    return replace(whole, natural_ids=np.arange(len(whole.train)), test_ids=np.arange(len(whole.test)))


def rows_of(raw: dict[str, Any], **overrides: Any) -> list[int]:
    """Numbers of the test samples that a recipe asks."""
    config = load_config(raw, {key.replace("__", "."): value for key, value in overrides.items()})
    found = federated_data(config, numbered(load_dataset("digits")))
    assert found.test_ids is not None
    assert len(found.test) == len(found.test_ids)
    return [int(row) for row in found.test_ids]


def test_some_of_the_test_set_are_asked() -> None:
    rows, whole = rows_of(asking()), load_dataset("digits")
    assert len(rows) == ASKED
    assert rows == sorted(set(rows))
    found = federated_data(load_config(asking()), whole)
    for part, expected in zip(found.test.batch(slice(None)), whole.test.batch(torch.tensor(rows)), strict=True):
        assert torch.equal(part, expected)
    assert torch.equal(found.test.labels, whole.test.labels[rows])
    assert (found.name, found.classes, found.test_ids) == (whole.name, whole.classes, None)


def test_they_follow_from_the_seed() -> None:
    assert rows_of(asking()) == rows_of(asking(rounds=9, data={"clients": 5, "alpha": 9.0}))
    assert rows_of(asking()) != rows_of(asking(), seed=6)
    drawn = [rows_of(asking(), seed=seed) for seed in range(40)]
    often = np.bincount(np.concatenate(drawn), minlength=len(load_dataset("digits").test))
    assert (often > 0).mean() > 0.9, "no sample is out of reach"


def test_variants_are_asked_the_same() -> None:
    compare = {"variants": {"plain": {}, "prox": {"method": "fedprox"}, "few": {"evaluation.samples": 5}}}
    found = variants_of(load_config(asking(compare=compare)))
    labels = {label: build_federation(config, values=False).dataset.test.labels for label, config in found.items()}
    assert torch.equal(labels["plain"], labels["prox"])
    assert [len(each) for each in labels.values()] == [ASKED, ASKED, 5]


def test_clients_train_on_what_they_trained_on() -> None:
    data: Datasets = {}
    every, some = (build_federation(load_config(asking(samples)), data, values=False) for samples in (None, ASKED))
    assert some.dataset.train is every.dataset.train
    assert some.dataset.test is not every.dataset.test
    assert all(np.array_equal(some.shards[client], every.shards[client]) for client in range(len(every.shards)))


@pytest.mark.parametrize("beyond", [0, 1, 10**6])
def test_as_many_as_there_are_or_more_are_all(beyond: int) -> None:
    whole = load_dataset("digits")
    assert federated_data(load_config(asking(len(whole.test) + beyond)), whole) is whole
    assert len(rows_of(asking(len(whole.test) - 1))) == len(whole.test) - 1


def test_of_some_classes_only_these_are_asked() -> None:
    labels, data = load_dataset("digits").test.labels, {"clients": 4, "classes": [7, 2]}
    rows = rows_of(asking(data=data))
    assert len(rows) == ASKED
    assert set(labels[rows].tolist()) == {7, 2}
    found = federated_data(load_config(asking(data=data)), load_dataset("digits"))
    assert found.test.labels.tolist() == [[7, 2].index(label) for label in labels[rows].tolist()]
    of_them = int(torch.isin(labels, torch.tensor([7, 2])).sum())
    assert len(rows_of(asking(of_them, data=data))) == of_them < len(labels)
    with pytest.raises(ConfigError, match=r"data.classes must be classes of digits"):
        rows_of(asking(data={"clients": 4, "classes": [70, 20]}))


def test_what_the_server_keeps_back_is_another_matter() -> None:
    pretrain = {"share": 0.25, "steps": 1}
    found = federated_data(load_config(asking(pretrain=pretrain)), load_dataset("digits"))
    every = federated_data(load_config(asking(None, pretrain=pretrain)), load_dataset("digits"))
    assert torch.equal(found.train.labels, every.train.labels)
    assert len(found.train) < len(load_dataset("digits").train)
    assert len(found.test) == ASKED


def test_people_keep_theirs(tmp_path: Path) -> None:
    write_har(tmp_path, people=4)
    data = {"clients": 4, "root": str(tmp_path), "partition": "natural"}
    raw = asking(10, data=data, dataset="uci-har", model="cnn1d")
    job, whole = build_federation(load_config(raw), values=False), load_dataset("uci-har", tmp_path)
    assert whole.test_ids is not None
    assert job.dataset.test_ids is not None
    assert job.dataset.natural_ids is not None
    assert len(job.dataset.natural_ids) == len(job.dataset.train)
    asked, _ = job.dataset.test.batch(slice(None))
    every, _ = whole.test.batch(slice(None))
    for x, person in zip(asked, job.dataset.test_ids, strict=True):
        (row,) = [i for i in range(len(every)) if torch.equal(every[i], x)]
        assert whole.test_ids[row] == person


def test_accuracies_are_shares_of_them(tmp_path: Path) -> None:
    result = fh.run(asking(7), out=tmp_path / "run")
    assert result.summary is not None
    right = result.summary.final_accuracy * 7
    assert right == pytest.approx(round(right), abs=1e-9)


def test_each_task_of_a_stream_needs_some() -> None:
    """The accuracy on a task without any would be 0, whatever the model."""
    stream = {"tasks": 5, "rounds_each": 1}
    with pytest.raises(ConfigError) as caught:
        build_federation(load_config(asking(1, stream=stream, rounds=5)))
    assert len(caught.value.problems) == 4
    told = (
        r"stream: the task of classes \d, \d cannot be tested: none of the 1 test samples .* evaluation.samples larger"
    )
    assert all(re.fullmatch(told, problem) for problem in caught.value.problems)
    build_federation(load_config(asking(100, stream=stream, rounds=5)), values=False)


def test_rows_are_taken_in_the_given_order() -> None:
    whole = numbered(load_dataset("digits"))
    found = chosen.tested_by(whole, np.array([5, 3, 9]))
    assert found.test_ids is not None
    assert found.test_ids.tolist() == [5, 3, 9]
    assert torch.equal(found.test.labels, whole.test.labels[[5, 3, 9]])
    assert found.train is whole.train


@pytest.mark.parametrize(("samples", "told"), [(0, "greater than or equal to 1"), ("many", "valid integer")])
def test_how_many_is_checked(samples: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluation.samples: must be (a )?{told}"):
        load_config(asking(samples))
