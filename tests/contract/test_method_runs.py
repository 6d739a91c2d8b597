"""What every method must obey in a run: budgets, figures, stops, workers, and where its clients are."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.grid_parts import assert_same_runs, run_on_local_grid
from tests.method_recipes import method_recipe
from tests.run_parts import Stop, Stopper, assert_same_run

import fedhybrid as fh
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.methods import METHODS
from fedhybrid.tree import detached_copy, tensors_of

# Their verbs are those of others of the table, which are in the quick part.
_ALIKE = {
    "checkpoint-per-block",
    "division",
    "fedasync",
    "fedbuff",
    "fedprox",
    "mesa",
    "replay",
    "tea-fed",
    "uniform-compression",
}
# Their clients train parts of the model, which differ by budget, speed or round.
_IN_PARTS = {
    "bsr",
    "depthfl",
    "elastic-trainer",
    "fedel",
    "foresight-zo",
    "heterofl",
    "knn",
    "mest",
    "mtn",
    "replay",
    "smartsplit",
    "tiny-training",
}
# All of theirs train the same part.
_ONE_PART = {"codedfedl": {"head"}, "scfl": {"head"}}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_its_file_opens_with_the_paper_and_it_holds_no_state(name: str) -> None:
    module = inspect.getmodule(METHODS[name])
    assert module is not None
    assert module.__doc__ is not None
    assert all(word in module.__doc__ for word in ("Source:", "Follows", "https://"))
    assert "Differs" in module.__doc__ or "RECONSTRUCTED" in module.__doc__
    method = METHODS[name]()
    assert dataclasses.is_dataclass(method)
    assert hash(method) == hash(METHODS[name]())
    assert method.stages[-1] == "train"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_it_makes_of_the_model_leaves_the_model_alone(name: str) -> None:
    """`adapt` and `submodel` build from names alone: twice the same form, nothing shared, values untouched."""
    job = build_federation(load_config(method_recipe(name)))
    before = detached_copy(tensors_of(job.model))
    for submodel in job.method.menu(job.model):
        made, again = (job.method.submodel(job.whole, submodel) for _ in range(2))
        layout = [(n, tuple(t.shape), t.dtype) for n, t in tensors_of(made.module).items()]
        assert layout == [(n, tuple(t.shape), t.dtype) for n, t in tensors_of(again.module).items()]
        if made.module is not job.model:
            own = {tensor.data_ptr() for tensor in tensors_of(job.model).values() if tensor.numel()}
            assert not own & {tensor.data_ptr() for tensor in tensors_of(made.module).values() if tensor.numel()}
    assert all(torch.equal(tensor, before[n]) for n, tensor in tensors_of(job.model).items())


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) if n in _ALIKE else n for n in METHODS])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name: str = request.param
    out = tmp_path_factory.mktemp(name) / "run"
    fh.run(method_recipe(name), out=out)
    return name, out


def test_planned_is_measured_and_nobody_exceeds_a_budget(finished: tuple[str, Path]) -> None:
    run = fh.load_run(finished[1])
    assert run.summary is not None
    assert run.summary.budget_violations == 0
    completed = [task for task in run.clients if task.outcome == "completed"]
    assert {task.kind for task in completed} >= {"train"}
    for task in completed:
        assert task.measured_peak_bytes is not None
        assert task.measured_peak_bytes <= task.budget_bytes
        if task.planned_peak_bytes is not None:
            assert task.planned_peak_bytes == task.measured_peak_bytes
        assert task.virtual_time_s > 0


def test_methods_of_several_submodels_train_several(finished: tuple[str, Path]) -> None:
    run = fh.load_run(finished[1])
    trained = {task.submodel for task in run.clients if task.kind == "train" and task.outcome == "completed"}
    if finished[0] in _IN_PARTS:
        assert len(trained) >= 2
    else:
        assert trained == _ONE_PART.get(finished[0], {""})


def test_it_learns_something(finished: tuple[str, Path]) -> None:
    """The global model moves and stays finite."""
    name, out = finished
    weights = load_file(out / "model.safetensors")
    job = build_federation(load_config(method_recipe(name)))
    start = job.method.init(tensors_of(job.model)).weights
    assert start.keys() == weights.keys()
    assert any(not torch.equal(start[tensor], weights[tensor]) for tensor in start)
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())
    run = fh.load_run(out)
    assert any(task.bytes_up > 0 for task in run.clients if task.kind == "train")
    trained = [record.train_loss for record in run.rounds]
    assert all(loss is not None for loss in trained)


def test_a_stopped_run_goes_on_alike(finished: tuple[str, Path], tmp_path: Path) -> None:
    name, out = finished
    with pytest.raises(Stop):
        fh.run(method_recipe(name), out=tmp_path / "run", progress=Stopper(at_round=0))
    fh.run(method_recipe(name), out=tmp_path / "run", resume=True)
    assert_same_run(out, tmp_path / "run")


def test_workers_change_nothing(finished: tuple[str, Path], tmp_path: Path) -> None:
    name, out = finished
    fh.run(method_recipe(name) | {"workers": 2}, out=tmp_path / "run")
    assert_same_run(out, tmp_path / "run")


def test_the_in_memory_grid_gives_the_same(finished: tuple[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    name, out = finished
    run_on_local_grid(method_recipe(name), tmp_path / "grid")
    assert_same_runs(out, tmp_path / "grid")
