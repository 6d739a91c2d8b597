"""Batches of other shapes: refused, or compiled when they first come, for the same budget and the same training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.step_parts import (
    OPTIMIZERS,
    assert_plan_holds,
    assert_same_bits,
    cross_entropy,
    eager_training,
    image_batch,
    planned_training,
    small_model,
)
from torch import Tensor, nn

import fedhybrid as fh
from fedhybrid.executor import PlanOptions, PreparedStep, TrainStep, prepare_step
from fedhybrid.executor import prepare as preparing
from fedhybrid.executor import shapes as other_shapes
from fedhybrid.planner import CostTable

ADAM = OPTIMIZERS["adam"]


def small() -> nn.Module:
    return small_model("vit", depth=1, dim=12)


def uneven() -> list[Any]:
    """Full batches, a smaller last one, and again."""
    return [image_batch(size, seed=seed) for seed, size in enumerate((8, 8, 3, 8, 3, 5))]


def test_a_smaller_last_batch_trains_as_in_eager() -> None:
    model, examples = small(), uneven()
    expected = eager_training(model, cross_entropy, examples, ADAM)
    step = fh.compile_step(model, cross_entropy, examples[0], optimizer=ADAM, budget="60%", other_shapes="compile")
    assert list(step.programs) == [((8, 3, 16, 16), (8,))]
    assert_same_bits(step, planned_training(step, examples), expected)
    assert [shapes[0][0] for shapes in step.programs] == [8, 3, 5]
    assert step.steps_done == len(examples)
    for plan in step.programs.values():
        assert plan.budget_bytes == step.plan.budget_bytes
        assert plan.peak_bytes <= (step.plan.budget_bytes or 0)
    assert_plan_holds(step)


class Words(nn.Module):
    """A batch of token numbers of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.out = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.relu(self.mix(self.table(tokens)))
        scores: Tensor = self.out(hidden.mean(1))
        return scores


def test_sequences_of_other_lengths() -> None:
    torch.manual_seed(0)
    model = Words()
    examples = [(torch.randint(0, 50, (4, length)), torch.randint(0, 10, (4,))) for length in (12, 7, 12, 20, 7)]
    expected = eager_training(model, cross_entropy, examples, ADAM, clip_norm=0.1)
    step = fh.compile_step(model, cross_entropy, examples[0], optimizer=ADAM, clip_norm=0.1, other_shapes="compile")
    assert_same_bits(step, planned_training(step, examples), expected)
    assert len(step.programs) == 3


def test_micro_batches_of_a_smaller_batch() -> None:
    examples = [image_batch(8), image_batch(4, seed=1)]
    model = small()
    expected = eager_training(model, cross_entropy, examples, ADAM, micro_batches=2)
    step = fh.compile_step(model, cross_entropy, examples[0], optimizer=ADAM, micro_batches=2, other_shapes="compile")
    assert_same_bits(step, planned_training(step, examples), expected)
    with pytest.raises(fh.ConfigError, match="divisible by 2"):
        step(*image_batch(3))
    assert step.steps_done == 2


def test_known_calls_are_not_profiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[CostTable | None, CostTable]] = []
    real = preparing.profile_step

    def watched(*args: Any, known: CostTable | None = None, **kwargs: Any) -> CostTable:
        seen.append((known, real(*args, known=known, **kwargs)))
        return seen[-1][1]

    monkeypatch.setattr(preparing, "profile_step", watched)
    step = fh.compile_step(small(), cross_entropy, image_batch(8), optimizer=ADAM, other_shapes="compile")
    step(*image_batch(3))
    (_, first), (known, second) = seen
    assert known is not None
    assert all(second.calls[key] == cost for key, cost in first.calls.items())
    assert sum(key.startswith("update ") for key in second.calls) == sum(
        key.startswith("update ") for key in first.calls
    ), "the updates are those of the first shape"
    assert len(second.calls) > len(first.calls)


def test_a_shape_that_does_not_fit_changes_nothing() -> None:
    model = small()
    step = fh.compile_step(model, cross_entropy, image_batch(4), optimizer=ADAM, budget="60%", other_shapes="compile")
    step(*image_batch(4))
    before = [p.clone() for p in model.parameters()]
    plan, programs = step.plan, step.programs
    with pytest.raises(fh.InfeasibleBudgetError):
        step(*image_batch(64))
    assert (step.plan, step.programs, step.steps_done) == (plan, programs, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_new_budget_is_for_every_shape() -> None:
    step = fh.compile_step(
        small(), cross_entropy, image_batch(8), optimizer=ADAM, budget="100%", other_shapes="compile"
    )
    step(*image_batch(7))
    loose = step.programs
    step.set_budget("50%")
    assert list(step.programs) == [((8, 3, 16, 16), (8,))]
    step(*image_batch(7))
    tight = step.programs
    for shapes, plan in tight.items():
        assert plan.peak_bytes < loose[shapes].peak_bytes
        assert plan.peak_bytes <= (step.plan.budget_bytes or 0)


def prepared_layers(width: int = 64) -> PreparedStep:
    """For batches of six, with prices that nothing is timed for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 10))
    return prepare_step(model, cross_entropy, image_batch(6, side=4), ADAM, op_seconds=lambda work: 1e-6)


def test_programs_used_longest_ago_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_shapes, "MOST_PROGRAMS", 2)
    made: list[int] = []
    real = other_shapes.for_batch

    def watched(prepared: Any, batch: Any, known: CostTable) -> Any:
        made.append(len(batch[0]))
        return real(prepared, batch, known)

    monkeypatch.setattr(other_shapes, "for_batch", watched)
    prepared = prepared_layers()
    model = prepared.model
    sizes = (6, 5, 4, 5, 3, 6, 4)
    examples = [image_batch(size, side=4, seed=seed) for seed, size in enumerate(sizes)]
    expected = eager_training(model, cross_entropy, examples, ADAM)
    step = TrainStep(prepared, prepared.plan("100%"), other_shapes="compile")
    torch.manual_seed(0)
    losses = []
    for batch in examples:
        losses.append(step(*batch))
        assert len(step.programs) <= 3, "the example's own and two more"
    assert_same_bits(step, losses, expected)
    assert step.steps_done == len(examples)
    assert [shapes[0][0] for shapes in step.programs] == [6, 3, 4]
    assert made == [5, 4, 3, 4], "5 was used after 4, so that 4 had to go for 3"


def test_costs_of_shapes_that_are_gone_are_not_kept() -> None:
    others = other_shapes.OtherShapes(prepared_layers(), PlanOptions(), most=2)
    known = []
    for size in (1, 2, 3, 4):
        others.runner_for(image_batch(size, side=4), None)
        known.append(len(others._known.calls))
    assert len(others.runners) == 2
    assert max(known[2:]) <= max(known[:2])


def test_codecs_of_a_program_that_comes_again_go_on_where_they_were() -> None:
    prepared = prepared_layers(width=1 << 13)
    others = other_shapes.OtherShapes(prepared, PlanOptions(solver="all-encoded"), most=1)
    budget_bytes = 4 * prepared.eager_peak_bytes

    def codecs(size: int) -> Any:
        runner = others.runner_for(image_batch(size, side=4), budget_bytes)
        assert runner is not None
        assert runner.codecs, "masks wait as bits"
        return runner.codecs

    for codec in codecs(3):
        codec.state.next_seed()
        codec.state.facts["seen"] = codec.number
    before = codecs(3)
    assert codecs(2)[0].state.calls == 0
    for old, new in zip(before, codecs(3), strict=True):
        assert old is not new
        assert old.state == new.state
        assert new.state.facts == {"seen": new.number}
    codecs(2)
    others.reset_codecs(7)
    fresh = codecs(3)
    for old, new in zip(before, fresh, strict=True):
        assert new.state.calls == 0
        assert new.state.seed != old.state.seed


def test_refused_by_default_with_the_way_out() -> None:
    step = fh.compile_step(small(), cross_entropy, image_batch(4), optimizer=ADAM)
    with pytest.raises(fh.ConfigError, match="other_shapes='compile'"):
        step(*image_batch(3))


def test_other_types_and_structures_are_refused_in_any_case() -> None:
    step = fh.compile_step(small(), cross_entropy, image_batch(4), optimizer=ADAM, other_shapes="compile")
    x, y = image_batch(3)
    with pytest.raises(fh.ConfigError, match="compiled for batches of"):
        step(x.double(), y)
    with pytest.raises(fh.ConfigError, match="structure"):
        step({"x": x, "y": y})
    with pytest.raises(fh.ConfigError, match="other_shapes must be one of refuse, compile"):
        fh.compile_step(small(), cross_entropy, image_batch(4), optimizer=ADAM, other_shapes="any")
