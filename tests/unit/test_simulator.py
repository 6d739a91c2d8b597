"""The incremental simulator against the plain one: any sequence of changes ends where a fresh start ends."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.plain_timeline import simulate
from tests.step_parts import OPTIMIZERS, cross_entropy, image_batch, small_model

from fedhybrid.executor import prepare_step
from fedhybrid.planner import Problem, Simulator, build_schedule
from fedhybrid.planner.schedule import schedule_of

NETS = ("cnn", "mobilenet_v2", "resnet20", "vit")


@cache
def problem_of(name: str) -> Problem:
    return prepare_step(small_model(name), cross_entropy, image_batch(), OPTIMIZERS["sgd"]).problem


@cache
def simulator_of(name: str) -> Simulator:
    """One that lives through all examples, so that it has a long past."""
    return Simulator(problem_of(name))


@settings(max_examples=150)
@given(st.data(), st.sampled_from(NETS))
def test_any_changes_give_what_a_fresh_start_and_a_plain_simulation_give(data: st.DataObject, name: str) -> None:
    problem, simulator = problem_of(name), simulator_of(name)
    subjects = [*problem.candidates, *(problem.subject_of(call) for call in problem.calls if len(call.forms) > 1)]
    changes = {}
    for subject in data.draw(st.lists(st.sampled_from(subjects), min_size=1, max_size=12)):
        if subject < len(problem.nbytes):
            changes[subject] = data.draw(st.sampled_from(problem.options[subject]))
        else:
            forms = problem.calls[subject - len(problem.nbytes)].forms
            changes[subject] = data.draw(st.integers(0, len(forms) - 1))
    if data.draw(st.booleans()):
        simulator.update(changes)
    else:
        for subject, option in changes.items():
            simulator.decide(subject, option)
    fresh = build_schedule(problem, simulator.decisions)
    schedule = schedule_of(simulator)
    assert schedule.steps == fresh.steps
    assert schedule.tops == fresh.tops
    assert fresh.tops == simulate(problem, fresh)
    assert simulator.peak_bytes == fresh.peak_bytes
    assert simulator.extra_seconds == pytest.approx(sum(step.seconds for step in fresh.steps) - problem.seconds)


@pytest.mark.parametrize("name", NETS)
def test_taking_everything_back_leads_to_the_beginning(name: str) -> None:
    problem = problem_of(name)
    simulator = Simulator(problem)
    start = simulator.tops().tolist()
    simulator.update({s: problem.options[s][-1] for s in problem.candidates})
    assert simulator.peak_bytes < max(start)
    simulator.reset({})
    assert simulator.tops().tolist() == start
    assert simulator.extra_seconds == 0
