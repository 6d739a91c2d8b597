"""SmartSplit in runs: cuts change nothing that is learnt, budgets decide them, bytes are counted, weak devices help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.run_parts import slow_device, small
from torch import nn

import fedhybrid as fh
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.executor import SGD, TrainStep, prepare_step
from fedhybrid.experiment import RunResult
from fedhybrid.methods.splitting import Cut, device_half
from fedhybrid.models import build_model
from fedhybrid.protocols import Submodel

BATCH, STEPS = 8, 3
ALIKE = {"clients_per_round": 3, "tiers": [{"name": "all", "budget": "100%", "device": "laptop"}]}


def one_round(**changes: Any) -> dict[str, Any]:
    plain = {"rounds": 1, "fleet": ALIKE, "train": {"batch_size": BATCH, "steps": STEPS, "lr": 0.1, "momentum": 0.9}}
    return small(**plain | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    fh.run(one_round(method="fedavg"), out=out)
    return out


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_every_cut_is_fedavg_with_the_same_batches(cut: int, whole: Path, tmp_path: Path) -> None:
    found = fh.run(one_round(method="smartsplit", method_options={"fixed_cut": cut}), out=tmp_path / "run")
    expected = fh.load_run(whole)
    assert {task.submodel for task in found.clients} == {"" if cut == 3 else f"cut-{cut}"}
    for name, tensor in load_file(whole / "model.safetensors").items():
        other = load_file(tmp_path / "run/model.safetensors")[name]
        assert float((other - tensor).abs().max()) < 1e-5
    for one, other in zip(found.clients, expected.clients, strict=True):
        assert (one.client, one.outcome) == (other.client, "completed")
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


@pytest.mark.parametrize(("cut", "channels", "side"), [(1, 8, 16), (2, 16, 8)])
def test_every_byte_of_the_exchange_is_counted(cut: int, channels: int, side: int, tmp_path: Path) -> None:
    """Down: the device's half, gradients, losses. Up: the half, activations, labels."""
    run = fh.run(one_round(method="smartsplit", method_options={"fixed_cut": cut}), out=tmp_path / "run")
    first, second = 4 * (8 * 9 + 8), 4 * (16 * 8 * 9 + 16)
    half = first if cut == 1 else first + second
    activations = 4 * BATCH * channels * side * side
    for task in run.clients:
        assert task.bytes_up == half + STEPS * (activations + 8 * BATCH)
        assert task.bytes_down == half + STEPS * (activations + 4 * BATCH)


def plan_of_half(name: str, cut: int, batch: tuple[torch.Tensor, torch.Tensor], budget: str) -> TrainStep:
    model = build_model(name, input_shape=(3, 32, 32), classes=10, seed=0, options={"width": 0.5, "norm": "batch"})
    half = device_half(Submodel(module=model, loss_fn=classification_loss, optimizer=SGD(lr=0.1)), Cut(parts=cut))
    made = prepare_step(half.module, half.loss_fn, batch, half.optimizer, op_seconds=lambda work: 1e-4)
    return TrainStep(made, made.plan(budget, actions=("recompute",)))


@pytest.mark.parametrize("cut", [4, 8])
def test_recomputing_leaves_gradients_alone_and_keeps_to_the_budget(cut: int) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(8, 3, 32, 32, generator=generator), torch.randint(0, 10, (8,), generator=generator)
    step = plan_of_half("resnet20", cut, batch, "65%")
    measured = step.measure(repeats=1)
    assert step.plan.budget_bytes is not None
    assert measured.peak_bytes == step.plan.peak_bytes <= step.plan.budget_bytes < measured.eager_peak_bytes
    assert measured.gradient_error < 1e-6
    assert measured.bit_identical


@pytest.mark.slow
def test_the_first_cut_of_a_resnet18_takes_a_tenth_of_the_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(32, 3, 32, 32, generator=generator), torch.randint(0, 10, (32,), generator=generator)
    model = build_model("resnet18", input_shape=(3, 32, 32), classes=10, seed=0)
    whole = Submodel(module=model, loss_fn=classification_loss, optimizer=SGD(lr=0.1, momentum=0.9))
    unplanned = prepare_step(model, classification_loss, batch, whole.optimizer, op_seconds=lambda work: 1e-4)
    half = device_half(whole, Cut(parts=1))
    made = prepare_step(half.module, half.loss_fn, batch, half.optimizer, op_seconds=lambda work: 1e-4)
    step = TrainStep(made, made.smallest())
    assert step.measured_peak_bytes() == step.plan.peak_bytes
    assert 10 * step.plan.peak_bytes <= unplanned.eager_peak_bytes


def budgets_run(out: Path, shares: list[int], planner: dict[str, Any]) -> RunResult:
    """One client for each budget, all of them in the only round."""
    tiers = [{"name": f"{share:03}", "budget": f"{share}%", "device": "laptop"} for share in shares]
    return fh.run(
        one_round(
            method="smartsplit",
            method_options={"server_device": "raspberry-pi-zero-2"},  # so that deeper cuts are faster
            model="resnet20",
            model_options={"width": 0.25, "norm": "group"},
            data={"clients": len(shares), "partition": "iid"},
            fleet={"clients_per_round": len(shares), "tiers": tiers},
            planner=planner,
        ),
        out=out,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("planner", "different"), [({"actions": ["recompute"]}, 2), ({"enabled": "off"}, 5)])
def test_less_memory_moves_cuts_towards_the_input_and_keeps_everybody(
    planner: dict[str, Any], different: int, tmp_path: Path
) -> None:
    """A planned first stage takes about as much as a planned model, so that plans leave fewer different cuts."""
    run = budgets_run(tmp_path / "run", [100, 95, 90, 85, 75, 60, 45, 30, 22, 12], planner)
    *tasks, last = sorted(run.clients, key=lambda task: -task.budget_bytes)
    cuts = [Cut.named(task.submodel, of=11).parts for task in tasks]
    assert cuts == sorted(cuts, reverse=True)
    assert (cuts[0], cuts[-1]) == (11, 1)
    assert len(set(cuts)) >= different
    for task in tasks:
        assert task.outcome == "completed"
        assert task.measured_peak_bytes is not None
        assert task.measured_peak_bytes <= task.budget_bytes
    assert last.outcome == "out_of_memory"  # its memory does not even hold the first part


def test_plans_change_within_a_task_as_memory_moves(tmp_path: Path) -> None:
    trace = {"duration_s": 6000.0, "period_s": 4.0, "stay_s": 10.0, "apps_per_h": 500.0, "app_ratio": 0.01}
    memory = {"window_s": 60.0, "predictor": "last-value", "trace": trace | {"user_spread": 0.3}}
    tiers = [{"name": "slow", "budget": "102%", "device": slow_device(tmp_path, "slow"), "speed_spread": 0.2}]
    recipe = small(method="smartsplit", rounds=4, fleet={"clients_per_round": 10, "memory": memory, "tiers": tiers})
    completed = [task for task in fh.run(recipe, out=tmp_path / "run").clients if task.outcome == "completed"]
    assert {task.submodel for task in completed} >= {"", "cut-2"}
    assert any(task.switches > 0 for task in completed if task.submodel)
    for task in completed:
        assert task.measured_peak_bytes is not None
        assert task.measured_peak_bytes == task.planned_peak_bytes
        assert task.measured_peak_bytes <= task.budget_bytes


def strided(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network that shrinks its images at once, so that half of it takes much less than all of it."""
    channels, height, width = input_shape
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU(), nn.Linear(64, classes)),
    )


@pytest.mark.slow
def test_the_data_of_devices_that_cannot_hold_the_model_are_worth_several_points(tmp_path: Path) -> None:
    """Seven of ten hold no more than the first layer; who holds what differs."""
    tiers = [
        {"name": "weak", "budget": "40%", "share": 7, "device": "phone-low-end"},
        {"name": "strong", "budget": "100%", "share": 3, "device": "phone-low-end"},
    ]
    recipe = small(
        model=f"{__name__}:strided",
        model_options={},
        rounds=12,
        seed=1,
        data={"clients": 10, "alpha": 0.1},
        fleet={"clients_per_round": 5, "tiers": tiers},
        train={"batch_size": 16, "lr": 0.05, "momentum": 0.5},
        planner={"actions": ["recompute"]},
    )
    split = fh.run(recipe | {"method": "smartsplit", "policy": "smartsplit"}, out=tmp_path / "split")
    fitting = fh.run(recipe | {"method": "fedavg", "policy": "exclusion"}, out=tmp_path / "fitting")
    assert len({task.client for task in fitting.clients}) == 3
    assert len({task.client for task in split.clients}) > 7
    assert {task.outcome for task in (*split.clients, *fitting.clients)} == {"completed"}
    last = [sum(record.accuracy or 0.0 for record in run.rounds[-3:]) / 3 for run in (split, fitting)]
    assert last[0] > last[1] + 0.1
