"""What a recipe may say of rounds: every option in its range, and only where it means something."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.federation_parts import recipe

from fedhybrid.engine import Schedule
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import load_config
from fedhybrid.experiment.parts import schedule_of

LATE: dict[str, Any] = {"kind": "asynchronous"}


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({}, "synchronous"),
        ({"deadline_s": 5.0, "over_selection_ratio": 1.3, "timeout_s": 9.0}, "synchronous"),
        (LATE, "asynchronous"),
        (LATE | {"buffer": 5, "in_flight": 20, "max_staleness": 0, "timeout_s": 1.0}, "semi-asynchronous"),
    ],
)
def test_titles(options: dict[str, Any], title: str) -> None:
    schedule = Schedule(**options)
    assert schedule.title == title
    assert schedule.asynchronous is (title != "synchronous")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": "sometimes"}, "schedule.kind must be one of synchronous, asynchronous, got 'sometimes'"),
        ({"in_flight": 0}, "schedule.in_flight must be at least 1, got 0"),
        (LATE | {"buffer": 0}, "schedule.buffer must be at least 1, got 0"),
        ({"deadline_s": 0.0}, "schedule.deadline_s must be a positive number of seconds, got 0.0"),
        ({"deadline_s": math.nan}, "schedule.deadline_s must be a positive number of seconds, got nan"),
        ({"timeout_s": math.inf}, "schedule.timeout_s must be a positive number of seconds, got inf"),
        ({"timeout_s": -1.0}, "schedule.timeout_s must be a positive number"),
        ({"over_selection_ratio": 0.9}, "schedule.over_selection_ratio must be 1 to 100, got 0.9"),
        ({"over_selection_ratio": math.nan}, "schedule.over_selection_ratio must be 1 to 100, got nan"),
        (LATE | {"max_staleness": -1}, "schedule.max_staleness must be at least 0, got -1"),
        (LATE | {"deadline_s": 5.0}, "schedule.deadline_s and schedule.over_selection_ratio are for synchronous"),
        (LATE | {"over_selection_ratio": 1.5}, "schedule.deadline_s and schedule.over_selection_ratio are for"),
        ({"buffer": 2}, "schedule.buffer and schedule.max_staleness are for the asynchronous schedule"),
        ({"max_staleness": 2}, "schedule.buffer and schedule.max_staleness are for the asynchronous schedule"),
    ],
)
def test_problems(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(**options)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(kind="x", in_flight=0, buffer=0, max_staleness=-1, over_selection_ratio=0.0, timeout_s=0.0)
    assert len(caught.value.problems) == 7


class TestRecipes:
    def test_as_many_under_way_as_a_cohort_unless_it_says_otherwise(self) -> None:
        base = recipe(method="fedasync", policy="uniform", schedule={"kind": "asynchronous"})
        assert schedule_of(load_config(base)).in_flight == 3
        assert schedule_of(load_config(base, {"schedule.in_flight": 7})).in_flight == 7

    def test_no_more_than_there_are(self) -> None:
        base = recipe(method="fedasync", policy="uniform", schedule={"kind": "asynchronous"})
        load_config(base, {"schedule.in_flight": 24, "schedule.buffer": 24})
        with pytest.raises(ConfigError) as caught:
            load_config(base, {"schedule.in_flight": 25, "schedule.buffer": 26})
        assert list(caught.value.problems) == [
            "schedule.in_flight must be at most data.clients, which is 24, got 25",
            "schedule.buffer must be at most data.clients, which is 24, got 26",
        ]

    def test_nobody_is_kept_at_work_in_rounds(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(recipe(schedule={"in_flight": 3}))
        (problem,) = caught.value.problems
        assert problem.startswith("schedule.in_flight is for the asynchronous schedule")

    def test_only_methods_that_know_staleness(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(recipe(schedule={"kind": "asynchronous"}))
        (problem,) = caught.value.problems
        assert problem.startswith("schedule.kind is 'asynchronous', but method 'fedhybrid' does not know")
        assert "use one of fedasync, fedbuff" in problem

    def test_problems_are_said_with_those_of_other_tables(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(
                recipe(
                    schedule={"timeout_s": -1.0},
                    failures={"crash": 2.0},
                    traffic={"up": [{"name": "topk"}], "down": [{"name": "delta"}]},
                )
            )
        problems = caught.value.problems
        assert [problem.split(" ")[0].rstrip(":") for problem in problems] == [
            "schedule.timeout_s", "failures.crash", "traffic.up[0]", "traffic.down[0]",
        ]  # fmt: skip
