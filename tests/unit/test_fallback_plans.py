"""A plan book with one plan for those who cannot hold the step: who gets it, at what price, and what it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.federation_parts import BATCH, DEVICES, prepared_step, small_split

from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.runtime import one_thread
from fedhybrid.errors import ConfigError
from fedhybrid.executor import PlanOptions, PreparedStep, TrainStep
from fedhybrid.methods import CheckpointPerBlock, UniformCompression
from fedhybrid.models import build_model
from fedhybrid.planner.solvers.simple import block_inputs
from fedhybrid.tree import detached_copy, tensors_of

FALLBACKS = ("affine-4", "affine-8", "checkpoint-blocks")


@pytest.fixture(scope="module")
def prepared() -> PreparedStep:
    options = {"width": 0.5, "norm": "group"}
    with one_thread():
        return prepared_step(build_model("resnet20", input_shape=(1, 32, 32), classes=10, seed=0, options=options))


def book_of(prepared: PreparedStep, folder: Path, fallback: str) -> PlanBook:
    return PlanBook(prepared, DEVICES, folder, enabled=True, planning=PlanOptions(), fallback=fallback)


@pytest.mark.parametrize("fallback", FALLBACKS)
class TestEveryFallback:
    def test_only_who_needs_it_gets_it(self, fallback: str, prepared: PreparedStep, tmp_path: Path) -> None:
        book = book_of(prepared, tmp_path, fallback)
        whole = book.eager_peak_bytes
        least = book.smallest_bytes
        assert least < 0.8 * whole
        assert book.choose("laptop", whole) is None
        assert book.needed_bytes(None) == whole
        for budget in (least, (least + whole) // 2, whole - 1):
            assert book.choose("laptop", budget) == f"laptop-{fallback}"
            assert book.needed_bytes(f"laptop-{fallback}") == least <= budget
        assert book.choose("laptop", least - 1) is None
        assert book.step_s("laptop", least - 1) == float("inf")
        assert [path.name for path in (tmp_path / "plans").glob("laptop-*")] == [f"laptop-{fallback}.json"]

    def test_it_costs_time(self, fallback: str, prepared: PreparedStep, tmp_path: Path) -> None:
        book = book_of(prepared, tmp_path, fallback)
        for device in DEVICES:
            assert book.step_s(device, book.smallest_bytes) > book.step_s(device, book.eager_peak_bytes)

    def test_many_are_priced_as_one_by_one(self, fallback: str, prepared: PreparedStep, tmp_path: Path) -> None:
        """`kinds` groups budgets for the plan book; none may be priced as another's."""
        book = book_of(prepared, tmp_path, fallback)
        whole, least = book.eager_peak_bytes, book.smallest_bytes
        edges = (least, book.keep_all_bytes, whole)
        near = [edge + by for edge in edges for by in (-2048, -1, 0, 1, 2048)]
        budgets = np.array([*near, *np.linspace(0.3 * whole, 1.1 * whole, 60).astype(int)], dtype=np.int64)
        kinds = book.kinds(budgets, ["laptop"], np.zeros(len(budgets), dtype=np.int64))
        seconds: dict[int, float] = {}
        for kind, budget in zip(kinds.tolist(), budgets.tolist(), strict=True):
            found = book.step_s("laptop", budget)
            assert seconds.setdefault(kind, found) == found
        assert len(set(seconds.values())) == 3

    def test_planned_is_measured(self, fallback: str, prepared: PreparedStep, tmp_path: Path) -> None:
        book = book_of(prepared, tmp_path, fallback)
        plan = book.program("laptop", f"laptop-{fallback}")
        with one_thread():
            assert TrainStep(prepared, plan).measured_peak_bytes() == plan.peak_bytes == book.smallest_bytes


def after_a_step(prepared: PreparedStep, plan_name: str | None, book: PlanBook) -> dict[str, torch.Tensor]:
    own = tensors_of(prepared.model)
    start = detached_copy(own)
    step = TrainStep(prepared, book.program("laptop", plan_name))
    try:
        with one_thread():
            step(*small_split().batch(torch.arange(BATCH)))
        return detached_copy(own)
    finally:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(start[name])


def test_checkpoints_change_no_bit_and_keep_the_inputs_of_blocks(prepared: PreparedStep, tmp_path: Path) -> None:
    book = book_of(prepared, tmp_path, "checkpoint-blocks")
    assert book.choose("laptop", book.smallest_bytes) == "laptop-checkpoint-blocks"
    plain, blocks = (after_a_step(prepared, name, book) for name in (None, "laptop-checkpoint-blocks"))
    assert all(torch.equal(plain[name], blocks[name]) for name in plain)
    kept = block_inputs(prepared.problem)
    assert len(kept) >= 9  # ResNet-20 has nine residual units
    again = {decision.storage for decision in book.program("laptop", "laptop-checkpoint-blocks").decisions}
    assert again
    assert not again & set(kept)


@pytest.mark.parametrize("bits", [4, 8])
def test_compression_packs_alike_and_loses_a_little(bits: int, prepared: PreparedStep, tmp_path: Path) -> None:
    book = book_of(prepared, tmp_path, f"affine-{bits}")
    name = book.choose("laptop", book.smallest_bytes)
    plan = book.program("laptop", name)
    lossy = {d.action for d in plan.decisions if d.action != "encode:bits"}
    assert lossy == {f"encode:affine-{bits}"}
    start = detached_copy(tensors_of(prepared.model))
    plain, packed = (after_a_step(prepared, each, book) for each in (None, name))
    moved = sum((plain[n] - start[n]).square().sum() for n in plain).sqrt()
    missed = sum((plain[n] - packed[n]).square().sum() for n in plain).sqrt()
    assert 0 < missed / moved < (0.03 if bits == 8 else 0.4)


def test_methods_name_their_fallback() -> None:
    assert UniformCompression().fallback == "affine-8"
    assert UniformCompression(bits=4).fallback == "affine-4"
    assert CheckpointPerBlock().fallback == "checkpoint-blocks"
    with pytest.raises(ConfigError, match="bits must be 8 or 4, got 2"):
        UniformCompression(bits=2)


def test_four_bits_are_smaller_than_eight(prepared: PreparedStep, tmp_path: Path) -> None:
    peaks = []
    for fallback in FALLBACKS[:2]:
        (tmp_path / fallback).mkdir()
        peaks.append(book_of(prepared, tmp_path / fallback, fallback).smallest_bytes)
    assert peaks[0] < peaks[1]
