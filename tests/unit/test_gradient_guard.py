"""The guard of lossy plans: it measures truly, keeps the cap while training goes on, and changes nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.step_parts import OPTIMIZERS, cross_entropy, image_batch, small_model
from torch import Tensor

import fedhybrid as fh
from fedhybrid.executor import PlanOptions, PreparedStep, TrainStep, prepare_step
from fedhybrid.executor.guard import GradientSketch

CAP = 0.05
LOSSY = PlanOptions(actions=("encode",), max_gradient_error=CAP)


def prepared_step() -> PreparedStep:
    return prepare_step(small_model("resnet20"), cross_entropy, image_batch(8), OPTIMIZERS["sgd"])


def believing(prepared: PreparedStep, factor: float) -> PreparedStep:
    """The step with errors measured, and then taken to be so many times what they are."""
    prepared.problem_with(("encode",))
    scaled = {
        codecs: {key: error * factor for key, error in errors.items()}
        for codecs, errors in prepared.pack_errors.items()
    }
    return replace(prepared, pack_errors=scaled)


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

    def test_tightens_a_plan_that_was_too_bold(self) -> None:
        prepared = believing(prepared_step(), 0.02)
        step = guarded(prepared, "60%")
        before = step.plan
        for _ in range(4):
            step.run_example()
        first, *_, last = step.guard_records
        assert first.measured_error > CAP
        assert first.outcome == "tightened"
        assert last.measured_error < first.measured_error
        assert last.measured_error <= CAP * 1.25
        assert step.plan.key != before.key
        assert step.plan.budget_bytes == before.budget_bytes
        assert step.measured_peak_bytes() == step.plan.peak_bytes <= step.plan.budget_bytes

    def test_relaxes_a_plan_that_was_too_timid(self) -> None:
        options = PlanOptions(actions=("recompute", "encode"), max_gradient_error=CAP)
        prepared = believing(prepared_step(), 8.0)
        step = TrainStep(prepared, prepared.planned("55%", options), planning=options, guard_every=1)
        if (step.plan.gradient_error or 0.0) <= CAP / 2:
            pytest.skip("the plan of this machine's costs did not use its room for errors")
        step.run_example()
        (record,) = step.guard_records
        assert record.outcome == "relaxed"
        assert record.scale < 1

    def test_says_where_no_milder_plan_fits(self) -> None:
        step = guarded(believing(prepared_step(), 1e-4), "38%")
        step.run_example()
        (record,) = step.guard_records
        assert (record.outcome, record.measured_error > CAP) == ("stuck", True)

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
                if any(record.outcome != "kept" for record in step.guard_records):
                    pytest.skip("another plan was made in between")
        (without, _, drawn), (with_guard, _, drawn_too) = trained
        assert all(torch.equal(without[name], with_guard[name]) for name in without)
        assert torch.equal(drawn, drawn_too)

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
        plan = prepared.plan(exact - 4096, actions=("recompute", "encode"), max_gradient_error=0.5)
        with pytest.raises(fh.ConfigError, match="the exact gradient, which needs"):
            TrainStep(prepared, plan, planning=LOSSY, guard_every=1)
