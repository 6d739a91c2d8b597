"""What every solver of `SOLVERS` obeys, and that the schedule's bytes are those of a plain simulation."""

from __future__ import annotations

from functools import cache

import pytest
from tests.reference.plain_timeline import simulate
from tests.step_parts import OPTIMIZERS, cross_entropy, image_batch, small_model

from fedhybrid.executor import prepare_step
from fedhybrid.planner import KEEP, SOLVERS, Effort, Problem, build_schedule
from fedhybrid.planner.solvers import smallest_of
from fedhybrid.planner.solvers.greedy import GOOD_ENOUGH_RATIO

NETS = ("cnn", "resnet20", "vit")


@cache
def problem_of(name: str) -> Problem:
    return prepare_step(small_model(name), cross_entropy, image_batch(), OPTIMIZERS["sgd"]).problem


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("solver", sorted(SOLVERS))
class TestEverySolver:
    def test_drops_only_what_can_be_made_again(self, solver: str, net: str) -> None:
        problem = problem_of(net)
        found = SOLVERS[solver](problem, problem.eager_peak_bytes // 2, Effort())
        assert {s for s in found.decisions if s < len(problem.nbytes)} <= set(problem.replays)
        assert KEEP not in found.decisions.values()

    def test_its_figures_are_those_of_its_schedule(self, solver: str, net: str) -> None:
        problem = problem_of(net)
        for share in (0.2, 0.6):
            found = SOLVERS[solver](problem, int(share * problem.eager_peak_bytes), Effort(split=True))
            assert found.peak_bytes == found.schedule.peak_bytes
            assert found.extra_seconds == pytest.approx(found.schedule.extra_seconds)
            assert found.bound_seconds <= found.extra_seconds + 1e-12

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
@pytest.mark.parametrize("solver", ["greedy", "milp"])
def test_searching_fits_and_is_never_dearer_than_the_references_that_fit(net: str, share: float, solver: str) -> None:
    problem = problem_of(net)
    floor = SOLVERS[solver](problem, 0, Effort()).peak_bytes
    limit = floor + int(share * (SOLVERS["keep-all"](problem, 0, Effort()).peak_bytes - floor))
    found = SOLVERS[solver](problem, limit, Effort())
    assert found.peak_bytes <= limit
    for name in ("keep-all", "recompute-all", "checkpoint-blocks"):
        reference = SOLVERS[name](problem, limit, Effort())
        if reference.peak_bytes <= limit:
            assert found.extra_seconds <= reference.extra_seconds + GOOD_ENOUGH_RATIO * problem.seconds


@pytest.mark.parametrize("net", NETS)
def test_no_plan_that_fits_is_cheaper_than_the_bound(net: str) -> None:
    problem = problem_of(net)
    top = SOLVERS["keep-all"](problem, 0, Effort()).peak_bytes
    for share in (0.9, 0.7, 0.5):
        limit = int(share * top)
        bound = SOLVERS["milp"](problem, limit, Effort()).bound_seconds
        for name in SOLVERS:
            found = SOLVERS[name](problem, limit, Effort())
            assert found.peak_bytes > limit or found.extra_seconds >= bound - 1e-12


@pytest.mark.parametrize("net", NETS)
def test_effort_bounds_the_work(net: str) -> None:
    problem, effort = problem_of(net), Effort(max_work=200)
    SOLVERS["greedy"](problem, problem.eager_peak_bytes // 3, effort)
    assert effort.work <= 200 + 20 * len(problem.ops)  # each seed is looked at once even so


def test_nothing_dropped_replays_nothing() -> None:
    schedule = build_schedule(problem_of("resnet20"), {})
    assert schedule.extra_seconds == 0
    assert not [s for s in schedule.steps if s.kind.name == "REPLAY"]


@pytest.mark.parametrize("net", NETS)
def test_the_floor_is_no_higher_than_any_plan(net: str) -> None:
    problem = problem_of(net)
    floor = smallest_of(problem, SOLVERS["milp"], Effort)
    for name in SOLVERS:
        assert floor.peak_bytes <= SOLVERS[name](problem, 0, Effort()).peak_bytes
    again = SOLVERS["milp"](problem, floor.peak_bytes, Effort(max_work=10**6))
    assert again.peak_bytes <= floor.peak_bytes
