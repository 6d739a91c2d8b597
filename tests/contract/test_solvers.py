"""What every solver of `SOLVERS` obeys, and that the schedule's bytes are those of a plain simulation."""

from __future__ import annotations

from functools import cache

import pytest
from tests.reference.plain_timeline import simulate
from tests.step_parts import OPTIMIZERS, cross_entropy, image_batch, small_model

from fedhybrid.executor import prepare_step
from fedhybrid.planner import SOLVERS, Decision, Effort, Problem, build_schedule

NETS = ("cnn", "mobilenet_v2", "resnet20", "vit")


@cache
def problem_of(name: str) -> Problem:
    return prepare_step(small_model(name), cross_entropy, image_batch(), OPTIMIZERS["sgd"]).problem


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("solver", sorted(SOLVERS))
class TestEverySolver:
    def test_drops_only_what_can_be_made_again(self, solver: str, net: str) -> None:
        problem = problem_of(net)
        found = SOLVERS[solver](problem, problem.eager_peak_bytes // 2, Effort())
        assert set(found.decisions) <= set(problem.replays)
        assert Decision.KEEP not in found.decisions.values()

    def test_its_peak_is_that_of_a_plain_simulation(self, solver: str, net: str) -> None:
        problem = problem_of(net)
        for share in (0.2, 0.6):
            found = SOLVERS[solver](problem, int(share * problem.eager_peak_bytes), Effort())
            assert found.schedule.tops == simulate(problem, found.schedule)

    def test_its_schedule_runs_each_op_and_update_once(self, solver: str, net: str) -> None:
        problem = problem_of(net)
        steps = SOLVERS[solver](problem, problem.eager_peak_bytes // 2, Effort()).schedule.steps
        assert [s.call for s in steps if s.kind.name == "OP"] == [op.op for op in problem.ops]
        assert sorted(s.call for s in steps if s.kind.name == "UPDATE") == list(range(len(problem.updates)))

    def test_the_same_work_gives_the_same_answer(self, solver: str, net: str) -> None:
        problem = problem_of(net)
        limit = problem.eager_peak_bytes // 3
        first, again = (SOLVERS[solver](problem, limit, Effort()) for _ in range(2))
        assert first.decisions == again.decisions


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_greedy_fits_and_is_never_dearer_than_the_references_that_fit(net: str, share: float) -> None:
    problem = problem_of(net)
    floor = SOLVERS["greedy"](problem, 0, Effort()).peak_bytes
    limit = floor + int(share * (SOLVERS["keep-all"](problem, 0, Effort()).peak_bytes - floor))
    found = SOLVERS["greedy"](problem, limit, Effort())
    assert found.peak_bytes <= limit
    for name in ("keep-all", "recompute-all", "checkpoint-blocks"):
        reference = SOLVERS[name](problem, limit, Effort())
        if reference.peak_bytes <= limit:
            assert found.extra_seconds <= reference.extra_seconds + 1e-12


@pytest.mark.parametrize("net", NETS)
def test_effort_bounds_the_evaluations(net: str) -> None:
    problem, effort = problem_of(net), Effort(max_evaluations=20)
    SOLVERS["greedy"](problem, problem.eager_peak_bytes // 3, effort)
    assert effort.evaluations <= 20 + 8  # each seed may be looked at once more


def test_nothing_dropped_replays_nothing() -> None:
    schedule = build_schedule(problem_of("resnet20"), {})
    assert schedule.extra_seconds == 0
    assert not [s for s in schedule.steps if s.kind.name == "REPLAY"]
