"""Foresight pruning and training without gradients in runs: bytes, passes, memory, and what it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.zeroth_parts import kept_ratio, prepared, whole_of
from torch import nn

import fedhybrid as fh
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, PreparedStep, TrainStep, prepare_step
from fedhybrid.experiment import RunResult
from fedhybrid.methods.foresight_zo import ForesightZo
from fedhybrid.methods.zeroth import parts_of
from fedhybrid.records import ClientRecord

ALL = [{"name": "all", "budget": "100%", "device": "laptop"}]
CENTRAL = {"mask": "random", "density": 0.2, "directions": 5, "difference": "central"}


def recipe(options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "method": "foresight-zo",
        "policy": "uniform",
        "model": "tests.zeroth_parts:tiny_convs",
        "dataset": "digits",
        "rounds": 2,
        "seed": 5,
        "data": {"clients": 4, "alpha": 5.0},
        "fleet": {"clients_per_round": 4, "tiers": ALL},
        "train": {"batch_size": 8, "steps": 3, "lr": 0.05},
        "planner": {"actions": ["recompute", "split"]},
        "method_options": options,
    } | changes


def tasks(result: RunResult, kind: str = "train") -> list[ClientRecord]:
    found = [task for task in result.clients if task.kind == kind]
    assert found
    assert {task.outcome for task in found} == {"completed"}
    return found


def test_scalars_are_all_that_goes_up_and_later_all_that_comes_down(tmp_path: Path) -> None:
    result = fh.run(recipe(CENTRAL), out=tmp_path / "run")
    for task in tasks(result):
        assert task.bytes_up == 4 * 5 * 3  # 4 K bytes a batch
        assert task.steps == 3 * 5 * (1 if task.submodel == "pair-1" else 2)
        assert task.samples == 3 * 8
    first, second = (sum(task.bytes_down for task in tasks(result) if task.round == number) for number in (0, 1))
    assert second == 4 * 4 * 5 * 3
    assert first > 4 * second
    weights = load_file(tmp_path / "run/model.safetensors")
    assert abs(kept_ratio(weights) - 0.2) <= 0.5 / 412


@pytest.mark.slow
def test_less_memory_takes_more_passes_and_changes_nothing(tmp_path: Path) -> None:
    """The same seeds and scalars, whether the batch goes through at once or in parts; the clock counts every pass."""
    results = {}
    for budget in ("100%", "20%"):
        tiers = [{"name": "all", "budget": budget, "device": "laptop"}]
        changed = recipe(CENTRAL, fleet={"clients_per_round": 4, "tiers": tiers})
        results[budget] = fh.run(changed | {"model": "cnn", "model_options": {"width": 0.25}}, out=tmp_path / budget)
    whole, parts = (tasks(result)[0] for result in results.values())
    assert whole.submodel in ("one-1", "pair-1")
    assert parts.submodel in ("one-4", "one-8")
    number = int(parts.submodel.removeprefix("one-"))
    assert parts.steps == 2 * 5 * 3 * number
    assert parts.measured_peak_bytes is not None
    assert whole.measured_peak_bytes is not None
    assert parts.measured_peak_bytes == parts.planned_peak_bytes < whole.measured_peak_bytes / 2
    assert parts.virtual_time_s > 1.2 * whole.virtual_time_s
    weights = [load_file(tmp_path / budget / "model.safetensors") for budget in results]
    assert max(float((weights[0][n].float() - weights[1][n].float()).abs().max()) for n in weights[0]) < 0.01


@pytest.mark.parametrize(
    ("options", "steps", "bytes_up"),
    [
        ({"saliency": "zo", "prune_directions": 7}, 14, 28),
        ({"saliency": "bp", "prune_repeats": 2}, 2, 4 * 412),
        ({"mask": "snip", "prune_repeats": 3}, 3, 4 * 412),
    ],
)
def test_pruning_rounds(options: dict[str, Any], steps: int, bytes_up: int, tmp_path: Path) -> None:
    given = {"prune_rounds": 3, "density": 0.1, "directions": 2} | options
    result = fh.run(recipe(given, rounds=1), out=tmp_path / "run")
    kinds = [f"prune-{number}" for number in range(1, 2 if options.get("mask") == "snip" else 4)]
    for kind in kinds:
        for task in tasks(result, kind):
            assert (task.steps, task.bytes_up) == (steps * parts_of(task.submodel), bytes_up)
            assert task.planned_peak_bytes == task.measured_peak_bytes
            assert task.virtual_time_s > 0
    assert {task.kind for task in result.clients} == {*kinds, "train"}
    weights = load_file(tmp_path / "run/model.safetensors")
    assert abs(kept_ratio(weights) - 0.1) < 0.002
    # Masks, a bit an entry, and what has none; weights under masks are drawn from a seed.
    if "saliency" in options:
        first, later = (tasks(result, kind)[0].bytes_down for kind in kinds[:2])
        assert later - first == math.ceil(412 / 8)


@pytest.mark.slow
def test_the_same_seeds_give_the_same_mask(tmp_path: Path) -> None:
    given = recipe({"prune_rounds": 2, "prune_directions": 5, "directions": 2}, rounds=1)
    found = []
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        fh.run(given | {"seed": seed}, out=tmp_path / name)
        weights = load_file(tmp_path / name / "model.safetensors")
        found.append(torch.cat([weights[n].flatten() for n in sorted(weights) if n.endswith("kept")]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_averaging_of_local_steps(tmp_path: Path) -> None:
    result = fh.run(recipe(CENTRAL | {"variant": "fedavg", "clip": 0.0}), out=tmp_path / "run")
    assert {task.steps for task in tasks(result)} <= {15, 30}
    active = round(0.2 * 412)
    other = 4 + 4 + 4 + 6 + 6 + 10 + 10 + 10  # biases and normalisations
    for task in tasks(result):
        assert 4 * (active + other) <= task.bytes_up <= 4 * (active + other) + 412 / 8 + 40  # and the masks' bits
    weights = load_file(tmp_path / "run/model.safetensors")
    assert abs(kept_ratio(weights) - 0.2) <= 0.5 / 412
    with pytest.raises(ConfigError, match="momentum"):
        fh.run(
            recipe({"variant": "fedavg"}, train={"batch_size": 8, "steps": 1, "lr": 0.1, "momentum": 0.9}),
            out=tmp_path / "momentum",
        )


def test_batch_normalisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='norm = "group"'):
        fh.run(recipe({}, model="resnet20"), out=tmp_path / "run")


def test_who_cannot_hold_gradients_is_told_what_to_do(tmp_path: Path) -> None:
    tiers = [{"name": "all", "budget": "10%", "device": "laptop"}]
    given = recipe({"saliency": "bp"}, model="cnn", model_options={"width": 0.25}, planner={"actions": []})
    with pytest.raises(ConfigError, match='saliency = "zo"'):
        fh.run(given | {"fleet": {"clients_per_round": 4, "tiers": tiers}}, out=tmp_path / "run")


@pytest.mark.parametrize("beside", [False, True])
def test_sums_of_gradients_must_fit_beside_the_step(beside: bool, tmp_path: Path) -> None:
    """One copy of the 412 weights under masks, beside the step that takes the least."""
    method = ForesightZo(saliency="bp")
    least_bytes = min(
        prepared(method, whole_of(method), f"ntk-bp-{parts}", 8).keep_all_peak_bytes for parts in (1, 2, 4, 8)
    )
    tiers = [{"name": "all", "budget": f"{least_bytes + (4 * 412 if beside else 4 * 411)} B", "device": "laptop"}]
    given = recipe(
        {"saliency": "bp", "prune_rounds": 1, "density": 0.5, "directions": 1},
        rounds=1,
        planner={"actions": []},
        fleet={"clients_per_round": 4, "tiers": tiers},
    )
    if beside:
        assert tasks(fh.run(given, out=tmp_path / "run"), "prune-1")
        return
    with pytest.raises(ConfigError, match=r"needs [0-9,]+ bytes"):
        fh.run(given, out=tmp_path / "run")


def backpropagation(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> PreparedStep:
    return prepare_step(model, classification_loss, batch, SGD(lr=0.1), op_seconds=lambda work: 1e-6)


def test_resnet20_takes_a_ninth_of_backpropagation() -> None:
    """Measured peaks, all resident bytes included, batch 32 of 3 x 32 x 32, group norm, plain SGD.

    Backpropagation in PyTorch: 51.5 MB. A forward pass of the whole batch: 10.1 MB; of a half: 6.0; of a quarter: 3.9.
    """
    from fedhybrid.models import build_model  # noqa: PLC0415

    batch = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    model = build_model("resnet20", input_shape=(3, 32, 32), classes=10, seed=0, options={"norm": "group"})
    plain = backpropagation(model, batch)
    full_bytes = TrainStep(plain, plain.keep_all()).measured_peak_bytes()
    method = ForesightZo(mask="random")
    whole = whole_of(method, model, batch[0])
    peaks = {}
    for name in ("one-1", "one-2", "one-4"):
        made = method.submodel(whole, name)
        step = prepare_step(
            made.module, made.loss_fn, batch, made.optimizer, op_seconds=lambda work: 1e-6, forward_only=True
        )
        train = TrainStep(step, step.keep_all())
        peaks[name] = train.measured_peak_bytes()
        assert peaks[name] == train.plan.peak_bytes
        if name == "one-1":
            smallest = step.smallest(actions=("split",))
            train.use_plan(smallest)
            assert train.measured_peak_bytes() == smallest.peak_bytes < full_bytes / 8
    assert full_bytes / peaks["one-1"] >= 5
    assert full_bytes / peaks["one-4"] >= 9
    assert full_bytes / peaks["one-2"] >= 8


def deep(layers: int) -> nn.Sequential:
    """Equal convolutions, one behind the other."""
    torch.manual_seed(0)
    convs = [unit for _ in range(layers) for unit in (nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize("name", ["one-1", "pair-1", "ntk-1"])
def test_memory_does_not_grow_with_depth(name: str) -> None:
    """4 against 16 layers: what a pass holds beside weights, masks and batch, as the allocator's events say."""
    method, found = ForesightZo(), []
    for layers in (4, 16):
        step = prepared(method, whole_of(method, deep(layers)), name)
        train = TrainStep(step, step.keep_all())
        found.append(train.measured_peak_bytes() - step.resident_bytes)
        assert train.measured_peak_bytes() == train.plan.peak_bytes
    assert found[1] <= 1.01 * found[0]
    grown = []
    for layers in (4, 16):
        plain = backpropagation(deep(layers), (torch.randn(6, 1, 32, 32), torch.zeros(6, dtype=torch.int64)))
        grown.append(plain.keep_all_peak_bytes - plain.resident_bytes)
    assert grown[1] > 2 * grown[0]


@pytest.mark.parametrize("variant", ["scalars", "fedavg"])
def test_lossy_links_are_refused(variant: str, tmp_path: Path) -> None:
    traffic = {"down": [{"name": "quantise", "bits": 8}]}
    with pytest.raises(ConfigError, match="says itself what goes over the links"):
        fh.run(recipe({"variant": variant}, traffic=traffic), out=tmp_path / "run")
