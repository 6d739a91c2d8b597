"""The guard of lossy plans: it measures truly, keeps the cap while training goes on, and changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.step_parts import OPTIMIZERS, cross_entropy, image_batch, small_model
from torch import Tensor

import fedhybrid as fh
from fedhybrid.executor import PlanOptions, PreparedStep, TrainStep, prepare_step
from fedhybrid.executor.guard import GUARD_BYTES, GradientGuard
from fedhybrid.executor.sketch import GradientSketch
from fedhybrid.graph import allocator_events, peak_of
from fedhybrid.units import parse_budget

CAP = 0.05
LOSSY = PlanOptions(actions=("encode",), max_gradient_error=CAP)
MIXED = PlanOptions(actions=("recompute", "encode"), max_gradient_error=CAP)


@cache
def made() -> tuple[PreparedStep, dict[str, Tensor]]:
    """A step on an imagined device, so that plans are the same on every machine, and its first weights."""
    prepared = prepare_step(
        small_model("resnet20"),
        cross_entropy,
        image_batch(8),
        OPTIMIZERS["sgd"],
        op_seconds=lambda work: 1e-6 + work.flops * 1e-10 + work.moved_bytes * 1e-10,
    )
    return prepared, weights(prepared)


def prepared_step() -> PreparedStep:
    """The step with its first weights again."""
    prepared, first = made()
    prepared.model.load_state_dict(first)
    return prepared


def guarded(prepared: PreparedStep, budget: str, every: int = 1) -> TrainStep:
    return TrainStep(prepared, prepared.planned(budget, LOSSY), planning=LOSSY, guard_every=every)


def weights(prepared: PreparedStep) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}


class TestSketch:
    @pytest.mark.parametrize("distance", [1e-3, 0.1, 1.0])
    def test_estimates_distances(self, distance: float) -> None:
        torch.manual_seed(0)
        exact = {name: torch.randn(size) for name, size in (("a", 70_001), ("b", 333), ("c", 1))}
        planned = {name: grad + distance * torch.randn_like(grad) for name, grad in exact.items()}
        sketches = []
        for gradients in (exact, planned):
            sketches.append(GradientSketch())
            for name, grad in gradients.items():
                sketches[-1].add(name, grad)
        true = float(sum((planned[n] - exact[n]).square().sum() for n in exact) ** 0.5)
        assert sketches[0].distance(sketches[1]) == pytest.approx(true, rel=0.08)
        length = float(sum(grad.square().sum() for grad in exact.values()) ** 0.5)
        assert sketches[0].length() == pytest.approx(length, rel=0.08)

    def test_order_and_strides_do_not_matter(self) -> None:
        one, other = GradientSketch(), GradientSketch()
        a, b = torch.arange(6.0).view(2, 3), torch.randn(9000)
        one.add("a", a)
        one.add("b", b)
        other.add("b", b)
        other.add("a", a.t().contiguous().t())
        assert one.distance(other) < 1e-5


class TestGuard:
    def test_measures_the_error_of_real_steps(self) -> None:
        step = guarded(prepared_step(), "65%")
        true = step.measure(repeats=1).gradient_error
        step.run_example()
        (record,) = step.guard_records
        assert record.measured_error == pytest.approx(true, rel=0.15)
        assert record.predicted_error == step.plan.gradient_error
        assert record.outcome == "kept"

    def test_tightens_a_plan_that_is_too_bold(self) -> None:
        prepared = prepared_step()
        bold = prepared.planned("60%", replace(LOSSY, max_gradient_error=0.5))
        cap = (bold.gradient_error or 0.0) / 4
        assert cap > 0
        step = TrainStep(prepared, bold, planning=replace(MIXED, max_gradient_error=cap), guard_every=1)
        for _ in range(3):
            step.run_example()
        first, *_, last = step.guard_records
        assert first.measured_error > cap
        assert first.outcome == "tightened"
        assert first.planning_cap < cap
        assert last.measured_error <= cap
        assert step.plan.key != bold.key
        assert step.plan.budget_bytes == bold.budget_bytes
        assert step.measured_peak_bytes() == step.plan.peak_bytes <= step.plan.budget_bytes

    def test_relaxes_when_errors_are_far_below_the_cap(self) -> None:
        prepared = prepared_step()
        step = TrainStep(prepared, prepared.planned("65%", LOSSY), planning=MIXED)
        used = step.plan.gradient_error or 0.0
        guard = GradientGuard(step, 1, 1.2 * used)
        guard.judge(2 * used)
        timid = step.plan
        guard.judge(used / 100)
        tightened, relaxed = guard.records[0], guard.records[1]
        assert (tightened.outcome, relaxed.outcome) == ("tightened", "relaxed")
        assert tightened.planning_cap < relaxed.planning_cap
        assert (timid.gradient_error or 0.0) <= tightened.planning_cap

    def test_says_where_no_milder_plan_fits(self) -> None:
        prepared = prepared_step()
        options = replace(LOSSY, max_gradient_error=0.9)
        plan = prepared.planned("52%", options)
        step = TrainStep(prepared, plan, planning=replace(options, max_gradient_error=1e-4), guard_every=1)
        step.run_example()
        (record,) = step.guard_records
        assert (record.outcome, record.measured_error > 1e-4) == ("stuck", True)
        assert step.plan.key == plan.key

    def test_training_is_as_without_it(self) -> None:
        trained = []
        for every in (None, 2):
            prepared = prepared_step()
            plan = prepared.planned("65%", LOSSY) if not trained else trained[0][1]
            step = TrainStep(prepared, plan, planning=LOSSY, guard_every=every)
            torch.manual_seed(3)
            for seed in range(4):
                step(*image_batch(8, seed=seed))
            trained.append((weights(prepared), step.plan, torch.rand(3)))
            if every is not None:
                assert [record.step for record in step.guard_records] == [0, 2]
                assert {record.outcome for record in step.guard_records} == {"kept"}
        (without, _, drawn), (with_guard, _, drawn_too) = trained
        assert all(torch.equal(without[name], with_guard[name]) for name in without)
        assert torch.equal(drawn, drawn_too)

    def test_a_step_that_is_looked_at_stays_inside_the_budget(self) -> None:
        prepared = prepared_step()
        budget = parse_budget("60%").resolve_bytes(
            resident_bytes=prepared.resident_bytes, eager_peak_bytes=prepared.eager_peak_bytes
        )
        plan = replace(prepared.planned(budget - GUARD_BYTES, MIXED), budget_bytes=budget)
        step = TrainStep(prepared, plan, planning=MIXED, guard_every=1)
        step.run_example()
        with allocator_events() as events:
            kept = step.run_example()
        del kept
        assert len(step.guard_records) == 2
        assert prepared.resident_bytes + peak_of(events) <= budget

    def test_a_budget_that_falls_leaves_no_room_and_the_record_says_so(self) -> None:
        prepared = prepared_step()
        step = guarded(prepared, "65%")
        exact = prepared.smallest(actions=("recompute",)).peak_bytes
        step.use_plan(replace(step.plan, budget_bytes=exact))  # as if the budget had fallen to what the plan needs
        step.run_example()
        assert [record.outcome for record in step.guard_records] == ["no room"]

    def test_exact_plans_are_not_looked_at(self) -> None:
        step = guarded(prepared_step(), "100%")
        assert step.plan.bit_identical
        step.run_example()
        assert step.guard_records == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"guard_every": 0, "max_gradient_error": 0.1}, "guard_every must be at least 1"),
            ({"guard_every": 5}, "max_gradient_error between 0 and 1"),
            ({"guard_every": 5, "max_gradient_error": 0.1, "mode": "eager"}, "eager mode has no lossy plans"),
        ],
    )
    def test_what_cannot_be_guarded_is_refused(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(fh.ConfigError, match=message):
            fh.compile_step(
                small_model("resnet20"), cross_entropy, image_batch(8), optimizer=OPTIMIZERS["sgd"], **options
            )

    def test_a_budget_without_room_for_the_exact_gradient_is_refused(self) -> None:
        prepared = prepared_step()
        exact = prepared.smallest(actions=("recompute",)).peak_bytes
        plan = prepared.plan(exact, actions=("recompute", "encode"), max_gradient_error=0.5)
        with pytest.raises(fh.ConfigError, match="the exact gradient, which needs"):
            TrainStep(prepared, plan, planning=LOSSY, guard_every=1)
