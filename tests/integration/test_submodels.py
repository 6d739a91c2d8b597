"""A method whose clients train parts of the model, in two stages a round: costs, bytes and plans of each part."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.federation_parts import recipe
from tests.head_method import HEAD
from tests.run_parts import Stop, Stopper, assert_same_run, trained, world_of

import fedhybrid as fh
from fedhybrid.engine import plans as plan_books
from fedhybrid.engine.traffic import Traffic
from fedhybrid.engine.world import World
from fedhybrid.updates import parse_pipeline

FLEET = {
    "clients_per_round": 4,
    "tiers": [
        {"name": "weak", "budget": "60%", "device": "raspberry-pi-4"},
        {"name": "strong", "budget": "100%", "device": "laptop"},
    ],
}


def headed(**changes: Any) -> dict[str, Any]:
    """Half of the devices can hold the step of the head alone."""
    base = recipe(
        method="tests.head_method:HeadFirst",
        model="cnn",
        model_options={"width": 0.25},
        policy="uniform",
        rounds=4,
        data={"clients": 8, "alpha": 5.0},
        fleet=FLEET,
        planner={"actions": ["recompute", "split"]},
        checkpoint_every=1,
    )
    return base | changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("submodels") / "run"
    fh.run(headed(), out=out)
    return out


def world_again(finished: Path, folder: Path) -> World:
    """The parts of the run in a copy of its folder: asked more, they would write more plans there."""
    shutil.copytree(finished, folder / "again")
    return world_of(headed(), folder / "again")


def test_everybody_takes_part_with_what_fits(finished: Path) -> None:
    run = fh.load_run(finished)
    assert {(task.tier, task.submodel) for task in run.clients} == {("weak", "head"), ("strong", "")}
    assert {task.outcome for task in run.clients} == {"completed"}
    for task in run.clients:
        assert task.planned_peak_bytes == task.measured_peak_bytes
        assert task.measured_peak_bytes is not None
        assert task.measured_peak_bytes <= task.budget_bytes
    plans = {path.stem.partition("@")[2] for path in (finished / "plans").iterdir()}
    assert plans == {"", "head"}


def test_each_round_has_a_stage_before_its_training(finished: Path) -> None:
    run = fh.load_run(finished)
    for record in run.rounds:
        probes = [task for task in run.clients if task.round == record.round and task.kind == "probe"]
        training = [task for task in trained(run.clients) if task.round == record.round]
        assert sorted(task.client for task in probes) == sorted(task.client for task in training) == record.cohort
        assert max(task.at_s for task in probes) <= min(task.at_s - task.virtual_time_s for task in training) + 1e-9
        assert all(task.steps == 1 for task in probes)


def test_bytes_are_those_of_what_travels(finished: Path) -> None:
    sizes = {name: tensor.numel() * 4 for name, tensor in load_file(finished / "model.safetensors").items()}
    whole, head = sum(sizes.values()), sum(sizes[name] for name in HEAD)
    seen: set[int] = set()
    for task in fh.load_run(finished).clients:
        if task.kind == "probe":
            assert task.bytes_down == (head if task.submodel and task.client in seen else whole)
            assert task.bytes_up == 8  # one figure
            seen.add(task.client)
        else:
            assert (task.bytes_down, task.bytes_up) == (0, head if task.submodel else whole)


def test_virtual_time_is_that_of_the_submodels_step(finished: Path, tmp_path: Path) -> None:
    world = world_again(finished, tmp_path)
    for task in trained(fh.load_run(finished).clients):
        device = world.device(task.client)
        step_s = world.book.program(device.name, task.plan, task.submodel).step_time_s
        wanted_s = task.steps * step_s + task.bytes_up / device.uplink_bytes_per_s
        assert task.virtual_time_s == pytest.approx(wanted_s)
    whole_s, head_s = (world.book.shelf(name).program("laptop", None).step_time_s for name in ("", "head"))
    assert head_s < 0.6 * whole_s


def test_percentages_refer_to_the_whole_models_step(finished: Path, tmp_path: Path) -> None:
    summary = fh.load_run(finished).summary
    assert summary is not None
    world = world_again(finished, tmp_path)
    assert summary.eager_peak_bytes == world.book.shelf("").eager_peak_bytes
    assert world.book.smallest_bytes == world.book.shelf("head").least_bytes("laptop")


@pytest.mark.parametrize("at_round", [0, 2])
def test_a_stopped_run_goes_on_alike(finished: Path, tmp_path: Path, at_round: int) -> None:
    with pytest.raises(Stop):
        fh.run(headed(), out=tmp_path / "run", progress=Stopper(at_round=at_round))
    fh.run(headed(), out=tmp_path / "run", resume=True)
    assert_same_run(finished, tmp_path / "run")


def test_workers_change_nothing(finished: Path, tmp_path: Path) -> None:
    fh.run(headed(workers=2), out=tmp_path / "run")
    assert_same_run(finished, tmp_path / "run")


def test_forgotten_submodels_are_captured_again_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = headed(method_options={"variants": 3})
    fh.run(many, out=tmp_path / "all")
    monkeypatch.setattr(plan_books, "_SHELVES", 1)
    fh.run(many, out=tmp_path / "one")
    assert_same_run(tmp_path / "all", tmp_path / "one")
    assert {task.submodel for task in trained(fh.load_run(tmp_path / "one").clients)} >= {"", "head.1", "head.2"}


def test_who_fails_in_a_stage_has_no_part_in_the_next(tmp_path: Path) -> None:
    fh.run(headed(failures={"crash": 0.4}), out=tmp_path / "run")
    run = fh.load_run(tmp_path / "run")
    lost = [task for task in run.clients if task.kind == "probe" and task.outcome == "crash"]
    assert lost
    for task in lost:
        assert not [t for t in trained(run.clients) if (t.round, t.client) == (task.round, task.client)]


def test_a_deadline_is_the_rounds_and_not_each_stages(finished: Path, tmp_path: Path) -> None:
    """Time for all probes, and for the training of some."""
    first = fh.load_run(finished)
    ends = sorted(task.at_s for task in trained(first.clients) if task.round == 0)
    deadline_s = (ends[0] + ends[-1]) / 2
    fh.run(headed(rounds=1, schedule={"kind": "synchronous", "deadline_s": deadline_s}), out=tmp_path / "run")
    run = fh.load_run(tmp_path / "run")
    assert run.rounds[0].virtual_time_s == pytest.approx(deadline_s)
    assert {task.outcome for task in trained(run.clients)} == {"completed", "late"}
    assert {task.outcome for task in run.clients if task.kind == "probe"} == {"completed"}


def test_the_upload_that_is_lost_is_that_of_the_submodel(tmp_path: Path) -> None:
    fh.run(headed(failures={"disconnected": 0.7}), out=tmp_path / "run")
    run = fh.load_run(tmp_path / "run")
    lost = [task for task in run.clients if task.outcome == "disconnected"]
    assert {task.kind for task in lost} == {"probe", "train"}
    head = sum(load_file(tmp_path / "run/model.safetensors")[name].numel() * 4 for name in HEAD)
    for task in lost:
        assert task.bytes_up <= (0 if task.kind == "probe" else head if task.submodel else 2**30)


def test_what_is_not_sent_again_came_through_the_same_pipeline() -> None:
    traffic = Traffic(
        down=parse_pipeline([{"name": "quantise", "bits": 4}], where="down"),
        up=parse_pipeline([], where="up"),
        differences=False,
        run_seed=1,
    )
    weights = {name: torch.linspace(-1, 1, 1000) ** 3 for name in ("a", "b")}
    whole, all_bytes = traffic.sent_down(weights, version=0)
    part, some_bytes = traffic.sent_down(weights, version=0, names=("a",))
    none, no_bytes = traffic.sent_down(weights, version=0, names=())
    for arrived in (part, none):
        assert all(torch.equal(arrived[name], whole[name]) for name in weights)
    assert not torch.equal(whole["b"], weights["b"])
    assert no_bytes < some_bytes < all_bytes
