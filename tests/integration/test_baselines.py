"""Width scaling, depth scaling, one plan for all who need one: bytes, memory, what stays, and that they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.run_parts import assert_books_balance, small

import fedhybrid as fh
from fedhybrid.engine.folder import RunFolder
from fedhybrid.engine.plans import FINE_BUCKETS
from fedhybrid.engine.world import book_of, submodels_of
from fedhybrid.experiment import RunResult
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config, variants_of
from fedhybrid.models.depths import level_names
from fedhybrid.models.narrowed import cut
from fedhybrid.models.shares import kept_shares
from fedhybrid.tree import Tensors, detached_copy, tensors_of, total_bytes

STRONG = {"name": "strong", "budget": "100%", "device": "laptop"}


def recipe(method: str, weak: str, **changes: Any) -> dict[str, Any]:
    """Two rounds of six clients of two kinds; who cannot do their task is not chosen."""
    settings: dict[str, Any] = {
        "method": method,
        "policy": "exclusion",
        "policy_options": {"memory_gate": "planned"},
        "rounds": 2,
        "data": {"clients": 6, "alpha": 1.0},
        "train": {"batch_size": 8, "steps": 3, "lr": 0.05, "momentum": 0.5},
        "fleet": {
            "clients_per_round": 6,
            "tiers": [{"name": "weak", "budget": weak, "device": "raspberry-pi-4"}, STRONG],
        },
    }
    return small(**(settings | changes))


def trained(raw: dict[str, Any], out: Path) -> tuple[Tensors, RunResult]:
    result = fh.run(raw, out=out)
    assert {task.outcome for task in result.clients} == {"completed"}
    for task in result.clients:
        assert task.measured_peak_bytes is not None
        assert task.measured_peak_bytes <= task.budget_bytes
    return load_file(out / "model.safetensors"), result


def start_of(raw: dict[str, Any]) -> Tensors:
    return detached_copy(tensors_of(build_federation(load_config(raw)).model))


def sent_and_peaks(result: RunResult) -> dict[str, tuple[set[int], set[int]]]:
    """Of each submodel that was trained the bytes up, and the peaks."""
    tasks = [task for task in result.clients if task.kind == "train"]
    for task in tasks:
        assert task.planned_peak_bytes == task.measured_peak_bytes
    return {
        name: (
            {task.bytes_up for task in tasks if task.submodel == name},
            {task.measured_peak_bytes or 0 for task in tasks if task.submodel == name},
        )
        for name in {task.submodel for task in tasks}
    }


@pytest.mark.parametrize(
    ("method", "options", "norm"),
    [("heterofl", {"mask": False}, "none"), ("heterofl", {"mask": False}, "group"), ("depthfl", {}, "batch")],
)
def test_a_fleet_that_holds_all_does_what_fedavg_does(
    method: str, options: dict[str, Any], norm: str, tmp_path: Path
) -> None:
    """Bit for bit, in as much time."""
    common = {"model_options": {"width": 0.25, "norm": norm}}
    own, mine = trained(recipe(method, "100%", method_options=options, **common), tmp_path / method)
    other, theirs = trained(recipe("fedavg", "100%", **common), tmp_path / "fedavg")
    assert all(torch.equal(own[name], tensor) for name, tensor in other.items())
    assert [round_.virtual_time_s for round_ in mine.rounds] == [round_.virtual_time_s for round_ in theirs.rounds]


def test_widths_send_their_share_and_need_less(tmp_path: Path) -> None:
    tiers = [{"name": budget, "budget": budget, "device": "laptop"} for budget in ("40%", "45%", "60%", "100%")]
    raw = recipe("heterofl", "", method_options={"mask": False}, model_options={"width": 0.25, "norm": "group"})
    raw["fleet"] = {"clients_per_round": 8, "tiers": tiers}
    raw["data"] = {"clients": 8, "alpha": 5.0}
    _, result = trained(raw, tmp_path / "run")
    model = build_federation(load_config(raw)).model
    found = sent_and_peaks(result)
    assert sorted(found) == ["w0.125", "w0.25", "w0.5", "w1.0"]
    for name, (sent, _) in found.items():
        part = cut(tensors_of(model), kept_shares(model, float(name[1:])))
        assert sent == {total_bytes(part)}
    down = {task.submodel: task.bytes_down for task in result.clients}
    assert down == {name: sent.pop() for name, (sent, _) in found.items()}
    peaks = [max(found[name][1]) for name in sorted(found)]
    assert peaks == sorted(peaks)
    assert peaks[0] < 0.5 * peaks[-1]


def test_what_nobody_holds_stays(tmp_path: Path) -> None:
    for method, weak, held in (("heterofl", "45%", {"w0.25"}), ("depthfl", "80%", {"d1"})):
        raw = recipe(method, weak, model_options={"width": 0.25, "norm": "group"})
        raw["fleet"]["tiers"] = raw["fleet"]["tiers"][:1]
        after, result = trained(raw, tmp_path / method)
        assert {task.submodel for task in result.clients} == held
        before = start_of(raw)
        model = build_federation(load_config(raw)).model
        if method == "heterofl":
            shares = kept_shares(model, 0.25)
            inside = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in before.items()}
            for name, kept in shares.items():
                inside[name][tuple(slice(0, share.size) for share in kept)] = True
        else:
            names = level_names(model, 1)
            inside = {n: torch.full_like(t, n in names, dtype=torch.bool) for n, t in before.items()}
        for name, mask in inside.items():
            assert torch.equal(before[name][~mask], after[name][~mask]), name
        moved = {name for name, mask in inside.items() if not torch.equal(before[name][mask], after[name][mask])}
        assert len(moved) >= 4


def test_depths_send_what_they_have_and_need_less(tmp_path: Path) -> None:
    tiers = [{"name": budget, "budget": budget, "device": "laptop"} for budget in ("80%", "100%", "105%")]
    raw = recipe("depthfl", "", model_options={"width": 0.25, "norm": "batch"})
    raw["fleet"] = {"clients_per_round": 6, "tiers": tiers}
    _, result = trained(raw, tmp_path / "run")
    model = build_federation(load_config(raw)).model
    found = sent_and_peaks(result)
    assert sorted(found) == ["d1", "d2", "plain"]
    whole = tensors_of(model)
    for level in (1, 2):
        assert found[f"d{level}"][0] == {total_bytes({n: whole[n] for n in level_names(model, level)})}
    down = {task.submodel: task.bytes_down for task in result.clients}
    assert down == {name: sent.pop() for name, (sent, _) in found.items()}
    assert max(found["d1"][1]) < max(found["plain"][1]) <= max(found["d2"][1])


def test_recomputing_alone_changes_no_bit(tmp_path: Path) -> None:
    """Weak devices that checkpoint give what devices without a limit give; they only take longer."""
    own, mine = trained(recipe("checkpoint-per-block", "90%"), tmp_path / "blocks")
    other, theirs = trained(recipe("fedavg", "100%"), tmp_path / "fedavg")
    assert all(torch.equal(own[name], tensor) for name, tensor in other.items())
    plans = {(task.tier, task.plan) for task in mine.clients}
    assert plans == {("weak", "raspberry-pi-4-checkpoint-blocks"), ("strong", None)}
    assert mine.rounds[-1].virtual_time_s > theirs.rounds[-1].virtual_time_s


def test_only_who_must_compresses(tmp_path: Path) -> None:
    raw = recipe("uniform-compression", "90%", method_options={"bits": 4})
    own, mine = trained(raw, tmp_path / "packed")
    other, _ = trained(recipe("fedavg", "100%"), tmp_path / "fedavg")
    plans = {(task.tier, task.plan) for task in mine.clients}
    assert plans == {("weak", "raspberry-pi-4-affine-4"), ("strong", None)}
    start = start_of(raw)
    missed = sum(float((own[name] - other[name]).square().sum()) for name in own)
    moved = sum(float((other[name] - start[name]).square().sum()) for name in own)
    assert 0 < missed < 0.05 * moved
    alone, _ = trained(recipe("uniform-compression", "100%"), tmp_path / "alone")
    assert all(torch.equal(alone[name], tensor) for name, tensor in other.items())


def test_statistics_are_asked_for_where_the_model_is_tested(tmp_path: Path) -> None:
    """Books balance, too, where such a task fails: its client's training counts once, and as completed."""
    raw = recipe("heterofl", "70%", model_options={"width": 0.25, "norm": "batch"}, rounds=5)
    raw["evaluation"] = {"every": 2}
    raw["failures"] = {"crash": 0.3}
    result = fh.run(raw, out=tmp_path / "run")
    assert_books_balance(result)
    asked = [task for task in result.clients if task.kind == "close"]
    assert {task.round for task in asked} == {1, 3, 4}
    assert {task.outcome for task in asked} == {"completed", "crash"}
    assert {task.submodel for task in asked} == {"statistics"}
    for task in asked:
        back = {t.client for t in result.clients if t.kind == "train" and t.round == task.round and not t.detail}
        assert task.client in back
        if task.outcome == "completed":
            assert task.planned_peak_bytes == task.measured_peak_bytes
    weights, start = load_file(tmp_path / "run" / "model.safetensors"), start_of(raw)
    assert not torch.equal(weights["features.1.running_var"], start["features.1.running_var"])


def test_the_comparison_has_all_baselines() -> None:
    config = load_config(Path(__file__).parents[2] / "recipes/comparisons/baselines.toml")
    variants = variants_of(config)
    chosen = {label: (own.method, own.policy) for label, own in variants.items()}
    assert chosen == {
        "oracle": ("fedavg", "exclusion"),
        "random-exclusion": ("fedavg", "exclusion"),
        "oort-fedprox": ("fedprox", "oort"),
        "heterofl": ("heterofl", "exclusion"),
        "depthfl": ("depthfl", "exclusion"),
        "compression-8": ("uniform-compression", "exclusion"),
        "compression-4": ("uniform-compression", "exclusion"),
        "checkpoint": ("checkpoint-per-block", "exclusion"),
        "fedhybrid-paper": ("fedhybrid", "fedhybrid"),
        "fedhybrid-plus": ("fedhybrid", "planned-utility"),
    }
    assert {tier.budget for tier in variants.pop("oracle").fleet.tiers} == {"100%"}
    assert all(own.fleet == config.fleet and own.data == config.data for own in variants.values())
    left_out = {label for label, own in variants.items() if own.policy_options.get("memory_gate") == "unplanned"}
    assert left_out == {"random-exclusion", "oort-fedprox"}
    assert {own.evaluation.every for own in variants.values()} == {3}  # HeteroFL pays for being tested
    paper = variants["fedhybrid-paper"].planner
    assert (paper.solver, paper.codecs) == ("greedy-mps", ["channel-mix"])


def test_the_strongest_hold_all_classifiers_in_the_comparison(tmp_path: Path) -> None:
    """Which are a little more than the plain step; without them nobody would teach, or learn from, the deepest."""
    variants = variants_of(load_config(Path(__file__).parents[2] / "recipes/comparisons/baselines.toml"))
    job = build_federation(variants["depthfl"])
    book = book_of(job, RunFolder(tmp_path), submodels_of(job), FINE_BUCKETS)
    budgets = job.fleet.budgets(resident_bytes=book.resident_bytes, eager_peak_bytes=book.eager_peak_bytes)
    assert book.offer("laptop", int(budgets.max())) == ("d4", None)
    assert book.offer("laptop", book.eager_peak_bytes) == ("plain", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "weak", "norm", "least"),
    [
        ("heterofl", "45%", "batch", 0.8),
        ("heterofl", "45%", "group", 0.8),
        ("depthfl", "80%", "batch", 0.8),
        ("uniform-compression", "90%", "batch", 0.8),
        ("checkpoint-per-block", "90%", "batch", 0.8),
    ],
)
def test_they_learn(method: str, weak: str, norm: str, least: float, tmp_path: Path) -> None:
    """The digits; chance is 0.1."""
    raw = recipe(method, weak, model_options={"width": 0.25, "norm": norm}, rounds=20)
    raw["train"] = {"batch_size": 16, "epochs": 1, "lr": 0.05, "momentum": 0.5}
    raw["evaluation"] = {"every": 10}
    _, result = trained(raw, tmp_path / "run")
    accuracy = result.rounds[-1].accuracy
    assert accuracy is not None
    assert accuracy >= least
