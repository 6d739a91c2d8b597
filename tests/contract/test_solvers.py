"""What every solver of `SOLVERS` obeys, and that the schedule's bytes are those of a plain simulation."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest
from tests.reference.plain_timeline import simulate
from tests.step_parts import OPTIMIZERS, cross_entropy, image_batch, small_model

import fedhybrid as fh
from fedhybrid.executor import LOSS_FREE, PlanOptions, prepare_step
from fedhybrid.planner import KEEP, SOLVERS, Effort, Problem, Solution, build_schedule
from fedhybrid.planner.problem import FIRST_PACK
from fedhybrid.planner.solvers import NEEDED_ACTIONS, smallest_of
from fedhybrid.planner.solvers.greedy import GOOD_ENOUGH_RATIO
from fedhybrid.planner.solvers.search import Search

NETS = ("cnn", "resnet20", "vit")
SUBSETS = [chosen for count in range(len(LOSS_FREE) + 1) for chosen in combinations(LOSS_FREE, count)]


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


def actions_of(found: Solution) -> set[str]:
    """What a solution does, in the words of the options."""
    storages = len(found.problem.nbytes)
    recomputed = any(s < storages and option < FIRST_PACK for s, option in found.decisions.items())
    split = any(s >= storages for s in found.decisions)
    return {name for name, used in (("recompute", recomputed), ("split", split)) if used}


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("actions", SUBSETS)
def test_does_what_is_allowed_or_is_refused(solver: str, actions: tuple[str, ...]) -> None:
    missing = set(NEEDED_ACTIONS.get(solver, ())) - set(actions)
    if missing:
        with pytest.raises(fh.ConfigError, match=f"solver '{solver}' needs the action '{missing.pop()}'"):
            PlanOptions(actions=actions, solver=solver)
        return
    PlanOptions(actions=actions, solver=solver)
    problem = problem_of("resnet20")
    effort = Effort(recompute="recompute" in actions, split="split" in actions)
    found = SOLVERS[solver](problem, problem.eager_peak_bytes // 2, effort)
    assert actions_of(found) <= set(actions)
    assert set(NEEDED_ACTIONS.get(solver, ())) <= actions_of(found)


def test_what_solvers_need_are_actions() -> None:
    assert set(NEEDED_ACTIONS) <= set(SOLVERS)
    assert all(set(needed) <= set(LOSS_FREE) for needed in NEEDED_ACTIONS.values()), (
        "the default must suit every solver"
    )


@cache
def faster_in_parts(name: str) -> Problem:
    """A step whose split calls take less time than whole: half of it if their bits are the same, else a quarter."""
    problem = problem_of(name)
    forms = [
        [replace(f, seconds=op.forms[0].seconds / (2 if f.exact else 4)) for f in op.forms[1:]] for op in problem.ops
    ]
    ops = [replace(op, forms=(op.forms[0], *split)) for op, split in zip(problem.ops, forms, strict=True)]
    assert any(f.exact for split in forms for f in split)
    return replace(problem, ops=ops)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("net", ["resnet20", "vit"])
def test_bounds_hold_where_splits_save_time(net: str, split: bool) -> None:
    problem = faster_in_parts(net)
    top = SOLVERS["keep-all"](problem, 0, Effort()).peak_bytes
    for effort in (Effort(split=split), Effort(split=split, recompute=False)):
        found = {name: SOLVERS[name](problem, top, replace(effort)) for name in SOLVERS}
        fitting = [f for f in found.values() if f.peak_bytes <= top]
        assert (min(f.extra_seconds for f in fitting) < 0) == split
        for name, mine in found.items():
            reordered = splits_inexactly(mine)
            comparable = [f.extra_seconds for f in fitting if reordered or not splits_inexactly(f)]
            assert mine.bound_seconds <= min(comparable, default=0.0) + 1e-12, name
            if not split:
                assert str(mine.bound_seconds) != "-0.0"


def splits_inexactly(found: Solution) -> bool:
    calls = [(s - len(found.problem.nbytes), option) for s, option in found.decisions.items()]
    return any(not found.problem.calls[call].forms[option].exact for call, option in calls if call >= 0)


def test_every_look_of_a_search_is_counted() -> None:
    problem, effort = problem_of("vit"), Effort(max_work=30_000)
    search = Search(problem, problem.eager_peak_bytes // 3, effort)
    search.repair()
    assert search.fits
    search.prune()
    search.improve(search.solution(), 0.0)
    assert effort.work == search.simulator.work


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
