"""A task's steps along moving memory, against an oracle that takes one step at a time."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.federation_parts import shop
from tests.scene_parts import moving_memory

from fedhybrid.engine.plans import PlanBook
from fedhybrid.engine.walk import LeftMemory, Leg, Walk, walk
from fedhybrid.records import FloatArray, IntArray

DEVICE = "raspberry-pi-4"
SOON_S = 1e-9  # what begins this little before a change begins at it


def levels(book: PlanBook) -> list[int]:
    """Amounts around every threshold of the book, and none at all."""
    every = (0, book.smallest_bytes, 920_000, book.keep_all_bytes, book.eager_peak_bytes)
    return [amount + more for amount in every for more in (-1, 0, 1) if amount + more >= 0]


@functools.cache
def rungs(book: PlanBook) -> frozenset[str]:
    """All plans that some amount gets."""
    amounts = range(book.smallest_bytes, book.eager_peak_bytes + 1024, 1024)
    return frozenset(name for name in (book.choose(DEVICE, amount) for amount in amounts) if name is not None)


def memory(changes: list[tuple[float, int]]) -> LeftMemory:
    """So many bytes from each time on."""
    times_s, left = np.array([at for at, _ in changes]), np.array([amount for _, amount in changes], dtype=np.int64)

    def between(start_s: float, end_s: float) -> tuple[FloatArray, IntArray]:
        first = int(np.searchsorted(times_s, start_s, side="right")) - 1
        last = max(int(np.searchsorted(times_s, end_s, side="left")), first + 1)
        return np.concatenate([[start_s], times_s[first + 1 : last]]), left[first:last]

    return between


def step_by_step(
    book: PlanBook, changes: list[tuple[float, int]], *, plan: str | None, steps: int, promised: int, start_s: float
) -> Walk:
    """What `walk` must give: look, choose, step, look back."""
    ran: list[str | None] = []
    now_s, running = start_s, plan
    violations_s: list[float] = []
    switches_s: list[float] = []
    for _ in range(steps):
        left = [amount for at_s, amount in changes if at_s <= now_s + SOON_S][-1]
        limit = min(left, promised)
        fitting = [book.program(DEVICE, name).step_time_s for name in rungs(book) if book.needed_bytes(name) <= limit]
        if not fitting:
            return Walk(
                legs=legs_of(ran),
                seconds=now_s - start_s,
                violations_s=tuple(violations_s),
                switches_s=tuple(switches_s),
                stopped="",
            )
        chosen = book.choose(DEVICE, limit)
        step_s = book.program(DEVICE, chosen).step_time_s
        assert step_s == min(fitting)  # no plan of the book that fits is faster
        switches_s += [now_s] * (chosen != running)
        running = chosen
        end_s = now_s + step_s
        fallen = [amount for at_s, amount in changes if now_s + SOON_S < at_s < end_s - SOON_S]
        violations_s += [now_s] * any(amount < book.program(DEVICE, chosen).peak_bytes for amount in fallen)
        ran.append(chosen)
        now_s = end_s
    return Walk(
        legs=legs_of(ran), seconds=now_s - start_s, violations_s=tuple(violations_s), switches_s=tuple(switches_s)
    )


def legs_of(plans: list[str | None]) -> tuple[Leg, ...]:
    legs: list[Leg] = []
    for plan in plans:
        same = legs and legs[-1].plan == plan
        legs = [*legs[:-1], Leg(plan=plan, steps=legs[-1].steps + 1)] if same else [*legs, Leg(plan=plan, steps=1)]
    return tuple(legs)


def check(book: PlanBook, changes: list[tuple[float, int]], *, promised: int, steps: int, start_s: float) -> Walk:
    plan = book.choose(DEVICE, promised)
    found = walk(
        book,
        DEVICE,
        plan=plan,
        steps=steps,
        promised_bytes=promised,
        start_s=start_s,
        speed_factor=1.0,
        left=memory(changes),
    )
    expected = step_by_step(book, changes, plan=plan, steps=steps, promised=promised, start_s=start_s)
    assert found.legs == expected.legs
    assert found.seconds == pytest.approx(expected.seconds, rel=1e-9, abs=1e-12)
    assert (found.violations(), found.switches()) == (expected.violations(), expected.switches())
    assert (found.stopped is None) == (expected.stopped is None)
    return found


class TestOracle:
    def test_the_ladder_has_rungs(self) -> None:
        book = shop().ladder
        assert len({book.needed_bytes(name) for name in rungs(book)}) >= 3

    @settings(max_examples=150)
    @given(data=st.data())
    def test_every_step_by_the_fastest_plan_that_fits(self, data: st.DataObject) -> None:
        book = shop().ladder
        step_s = book.program(DEVICE, None).step_time_s
        # Thirds of a step, so that changes fall on beginnings and ends of steps as well as inside them.
        gaps = data.draw(st.lists(st.integers(1, 12), max_size=12))
        amounts = data.draw(st.lists(st.sampled_from(levels(book)[2:]), min_size=len(gaps) + 1, max_size=len(gaps) + 1))
        times = np.concatenate([[0], np.cumsum(gaps)]) * step_s / 3
        start_s = data.draw(st.sampled_from([0.0, step_s, 1.7 * step_s]))
        promised = data.draw(st.sampled_from([amount for amount in levels(book) if amount >= book.smallest_bytes]))
        changes = [(float(at_s), amount) for at_s, amount in zip(times, amounts, strict=True)]
        check(book, changes, promised=promised, steps=data.draw(st.integers(1, 15)), start_s=start_s)

    @settings(max_examples=40)
    @given(samples=st.lists(st.integers(1, 13), min_size=4, max_size=12), period=st.integers(1, 9))
    def test_on_a_trace_of_the_fleet(self, samples: list[int], period: int) -> None:
        book = shop().ladder
        left = [levels(book)[number] for number in samples]
        period_s = period / 4 * book.program(DEVICE, None).step_time_s
        trace = moving_memory([left], period_s)
        whole = book.eager_peak_bytes
        found = walk(
            book,
            DEVICE,
            plan=book.choose(DEVICE, whole),
            steps=9,
            promised_bytes=whole,
            start_s=0.0,
            speed_factor=1.0,
            left=lambda start_s, end_s: trace.left_over(0, start_s, end_s, budget_bytes=whole),
        )
        changes = [(at * period_s, min(whole, left[at % len(left)])) for at in range(100)]
        plan = book.choose(DEVICE, whole)
        expected = step_by_step(book, changes, plan=plan, steps=9, promised=whole, start_s=0.0)
        assert found.legs == expected.legs
        assert (found.violations(), found.switches()) == (expected.violations(), expected.switches())


class TestByHand:
    def test_a_fall_in_the_middle_of_a_step_is_one_violation_and_the_next_step_follows(self) -> None:
        book = shop().ladder
        whole = book.eager_peak_bytes
        fast, small = book.choose(DEVICE, whole), book.choose(DEVICE, book.smallest_bytes)
        fast_s = book.program(DEVICE, fast).step_time_s
        changes = [(0.0, whole), (2.5 * fast_s, book.smallest_bytes)]
        found = check(book, changes, promised=whole, steps=5, start_s=0.0)
        assert found.legs == (Leg(plan=fast, steps=3), Leg(plan=small, steps=2))
        assert (found.violations(), found.switches(), found.stopped) == (1, 1, None)
        assert found.seconds == pytest.approx(3 * fast_s + 2 * book.program(DEVICE, small).step_time_s, rel=1e-12)

    def test_up_again_but_never_above_the_promise(self) -> None:
        book = shop().ladder
        whole, promised = book.eager_peak_bytes, book.keep_all_bytes - 1
        middle, small = book.choose(DEVICE, promised), book.choose(DEVICE, book.smallest_bytes)
        small_s = book.program(DEVICE, small).step_time_s
        found = check(book, [(0.0, book.smallest_bytes), (2 * small_s, whole)], promised=promised, steps=6, start_s=0.0)
        assert found.legs == (Leg(plan=small, steps=2), Leg(plan=middle, steps=4))
        assert (found.violations(), found.switches()) == (0, 2)  # down from what was promised, and up

    def test_two_falls_in_one_step_are_one_violation(self) -> None:
        book = shop().ladder
        whole = book.eager_peak_bytes
        step_s = book.program(DEVICE, None).step_time_s
        changes = [(0.0, whole), (0.3 * step_s, 1), (0.5 * step_s, whole), (0.7 * step_s, 1), (0.9 * step_s, whole)]
        assert check(book, changes, promised=whole, steps=2, start_s=0.0).violations() == 1

    def test_where_nothing_fits_the_task_stops(self) -> None:
        book = shop().ladder
        whole = book.eager_peak_bytes
        step_s = book.program(DEVICE, None).step_time_s
        found = check(
            book, [(0.0, whole), (2.5 * step_s, book.smallest_bytes - 1)], promised=whole, steps=9, start_s=0.0
        )
        assert found.legs == (Leg(plan=book.choose(DEVICE, whole), steps=3),)
        assert found.stopped is not None
        assert found.stopped.startswith("step 4 of 9 had")
        assert f"{book.smallest_bytes:,}" in found.stopped

    def test_where_not_even_the_first_step_fits_nothing_ran(self) -> None:
        book = shop().ladder
        found = check(book, [(0.0, 1)], promised=book.eager_peak_bytes, steps=3, start_s=0.0)
        assert (found.legs, found.seconds) == ((), 0.0)

    def test_budgets_that_stand_still_are_one_leg(self) -> None:
        book = shop().ladder
        plan = book.choose(DEVICE, book.smallest_bytes)
        found = walk(
            book,
            DEVICE,
            plan=plan,
            steps=7,
            promised_bytes=book.smallest_bytes,
            start_s=3.0,
            speed_factor=1.5,
            left=None,
        )
        assert found == Walk(legs=(Leg(plan=plan, steps=7),), seconds=7 * book.program(DEVICE, plan).step_time_s * 1.5)

    def test_a_slow_device_is_slow_at_every_step(self) -> None:
        book, whole = shop().ladder, shop().ladder.eager_peak_bytes
        plan = book.choose(DEVICE, whole)
        found = walk(
            book,
            DEVICE,
            plan=plan,
            steps=4,
            promised_bytes=whole,
            start_s=0.0,
            speed_factor=3.0,
            left=memory([(0.0, whole)]),
        )
        assert found.seconds == pytest.approx(12 * book.program(DEVICE, plan).step_time_s, rel=1e-12)

    def test_without_plans_the_unplanned_step_runs_or_nothing(self) -> None:
        book = shop().plain
        needed = book.needed_bytes(None)
        step_s = book.program(DEVICE, None).step_time_s
        left = memory([(0.0, needed), (1.5 * step_s, needed - 1)])
        arguments = {"plan": None, "steps": 4, "promised_bytes": needed, "start_s": 0.0, "speed_factor": 1.0}
        found = walk(book, DEVICE, left=left, **arguments)  # type: ignore[arg-type]
        assert found.legs == (Leg(plan=None, steps=2),)
        assert found.stopped is not None


def test_a_task_that_is_cut_off_counts_what_came_before() -> None:
    walked = Walk(legs=(), seconds=9.0, violations_s=(1.0, 5.0), switches_s=(2.0, 3.0, 6.0))
    assert (walked.violations(3.0), walked.switches(3.0)) == (1, 1)
    assert (walked.violations(), walked.switches()) == (2, 3)
