"""Classes that come one task after the other: who holds what when, what is asked, what is forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.grid_parts import assert_same_runs, run_on_local_grid
from tests.run_parts import Stop, Stopper, assert_same_run, small

import fedhybrid as fh
from fedhybrid.engine import Stream
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.engine.runtime import of_classes
from fedhybrid.engine.stream import average_incremental_accuracy, forgetting
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.records import RoundRecord
from fedhybrid.tree import tensors_of

_RECIPE: dict[str, Any] = {
    "rounds": 6,
    "stream": {"tasks": 3, "rounds_each": 2},
    "data": {"clients": 6, "partition": "shards", "shards_per_client": 3},
    "fleet": {"clients_per_round": 6},
    "train": {"batch_size": 8, "steps": 6, "lr": 0.1},
    "checkpoint_every": 1,
}


def _recipe(**changes: Any) -> dict[str, Any]:
    return small(method="fedavg") | _RECIPE | changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stream") / "run"
    fh.run(_recipe(), out=out)
    return out


@given(classes=st.integers(2, 30), tasks=st.integers(2, 30), seed=st.integers(0, 99))
def test_every_class_comes_once(classes: int, tasks: int, seed: int) -> None:
    if tasks > classes:
        with pytest.raises(ConfigError, match=r"stream\.tasks must be at most"):
            Stream.drawn(classes=classes, tasks=tasks, rounds_each=1, seed=seed)
        return
    stream = Stream.drawn(classes=classes, tasks=tasks, rounds_each=3, seed=seed)
    assert sorted(c for task in stream.tasks for c in task) == list(range(classes))
    assert {len(task) for task in stream.tasks} <= {classes // tasks, -(-classes // tasks)}
    assert stream == Stream.drawn(classes=classes, tasks=tasks, rounds_each=3, seed=seed)
    last = stream.at(10_000)
    assert last.index == tasks - 1
    assert sorted(last.seen) == list(range(classes))


def test_a_task_begins_and_ends() -> None:
    stream = Stream(tasks=((4, 1), (0,)), rounds_each=2)
    seen = [stream.at(round_index) for round_index in range(5)]
    assert [now.index for now in seen] == [0, 0, 1, 1, 1]
    assert [now.begins for now in seen] == [True, False, True, False, False]
    assert [now.ends for now in seen] == [False, True, False, True, False]
    assert seen[0].seen == (4, 1)
    assert seen[3].seen == (4, 1, 0)


def test_clients_train_on_the_tasks_classes_alone(finished: Path) -> None:
    job = build_federation(load_config(_recipe()))
    assert job.stream is not None
    labels = job.dataset.train.labels
    run = fh.load_run(finished)
    for record in run.rounds:
        now = job.stream.at(record.round)
        holders = {c for c in range(6) if len(of_classes(job.shards[c], labels, now.classes))}
        assert set(record.cohort) == holders  # nobody else is a candidate, so nobody fails for lack of data
        assert record.failed == 0
        assert record.task == now.index
        assert record.task_accuracies is not None
        assert len(record.task_accuracies) == now.index + 1
    assert len({tuple(record.cohort) for record in run.rounds}) > 1


def test_samples_of_other_classes_are_not_seen() -> None:
    shard = np.array([5, 3, 0, 2], dtype=np.int64)
    labels = torch.tensor([7, 1, 7, 2, 1, 3])
    assert of_classes(shard, labels, (7, 3)).tolist() == [5, 0, 2]
    assert of_classes(shard, labels, None) is shard
    assert of_classes(shard, labels, (9,)).tolist() == []


def test_only_what_has_come_is_asked_and_answered() -> None:
    job = build_federation(load_config(_recipe()))
    weights = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(job.model).items()}
    last = [name for name, tensor in weights.items() if tensor.shape == (job.dataset.classes,)][-1]
    weights[last][3] = 1.0  # it always says 3, or what comes first where it cannot
    evaluator = Evaluator(job.model, job.dataset.test)
    evaluator.see((3, 8))
    correct, losses = evaluator.whole(weights)
    labels = evaluator.labels
    assert set(labels.tolist()) == {3, 8}
    assert correct.tolist() == (labels == 3).tolist()
    assert torch.isfinite(losses).all()
    evaluator.see((5, 8))
    correct, _ = evaluator.whole(weights)
    assert correct.tolist() == (evaluator.labels == 5).tolist()
    evaluator.see(None)
    assert len(evaluator.whole(weights)[0]) == len(job.dataset.test)


def _record(round_index: int, task: int, by_task: list[float] | None) -> RoundRecord:
    accuracy = None if by_task is None else sum(by_task) / len(by_task)
    return RoundRecord(
        round=round_index, virtual_time_s=0.0, accuracy=accuracy, loss=None, train_loss=None, cohort=[], completed=0,
        failed=0, bytes_up=0, bytes_down=0, wall_time_s=0.0, task=task, task_accuracies=by_task,
    )  # fmt: skip


def test_forgetting_and_average_are_those_of_the_literature() -> None:
    rounds = [
        _record(0, 0, [0.7]),
        _record(1, 0, [0.9]),
        _record(2, 1, None),
        _record(3, 1, [0.5, 0.8]),
        _record(4, 2, [0.6, 0.2, 1.0]),
    ]
    assert average_incremental_accuracy(rounds) == pytest.approx((0.9 + 0.65 + 0.6) / 3)
    assert forgetting(rounds) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.2)) / 2)
    assert forgetting(rounds[:2]) is None
    assert average_incremental_accuracy([replace(each, task=None) for each in rounds]) is None


def test_the_summary_says_both(finished: Path) -> None:
    run = fh.load_run(finished)
    assert run.summary is not None
    assert run.summary.average_incremental_accuracy == pytest.approx(average_incremental_accuracy(run.rounds))
    assert run.summary.forgetting == pytest.approx(forgetting(run.rounds))
    assert run.summary.forgetting > 0.3  # nothing is done against it


def test_the_end_of_a_task_is_always_tested(tmp_path: Path) -> None:
    fh.run(_recipe(evaluation={"every": 4}), out=tmp_path / "run")
    run = fh.load_run(tmp_path / "run")
    assert [record.round for record in run.rounds if record.accuracy is not None] == [1, 3, 5]


def test_stopped_in_workers_or_on_the_grid_it_is_the_same_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fh.run(_recipe(), out=tmp_path / "stopped", progress=Stopper(at_round=2))
    fh.run(_recipe(), out=tmp_path / "stopped", resume=True)
    assert_same_run(finished, tmp_path / "stopped")
    fh.run(_recipe(workers=2), out=tmp_path / "workers")
    assert_same_run(finished, tmp_path / "workers")
    pytest.importorskip("flwr")
    run_on_local_grid(_recipe(), tmp_path / "grid")
    assert_same_runs(finished, tmp_path / "grid")


def test_clients_that_test_it_are_asked_all_that_has_come(tmp_path: Path) -> None:
    recipe = _recipe(evaluation={"every": 1, "clients": 6}, data={"clients": 6, "alpha": 50.0})
    fh.run(recipe, out=tmp_path / "run")
    job = build_federation(load_config(recipe))
    assert job.stream is not None
    labels = job.dataset.train.labels
    tests = [task for task in fh.load_run(tmp_path / "run").clients if task.kind == "evaluate"]
    assert len(tests) == 36
    for task in tests:
        seen = job.stream.at(task.round).seen
        assert task.samples == len(of_classes(job.shards[task.client], labels, seen))
    first = [task.accuracy for task in tests if task.round == 0]
    assert sum(accuracy or 0.0 for accuracy in first) / len(first) > 0.25  # of few classes one guess is often right


def test_rounds_must_be_enough_for_all_tasks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 tasks of 2 rounds need rounds to be at least 5, got 4"):
        fh.run(_recipe(rounds=4), out=tmp_path / "run")


def test_more_tasks_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream\.tasks must be at most the data set's 10 classes, got 11"):
        fh.run(_recipe(stream={"tasks": 11}, rounds=60), out=tmp_path / "run")
