"""The operating system agrees with the plan: a planned step survives under RLIMIT_DATA where the eager step dies."""

from __future__ import annotations

import json

import pytest
from tests.integration.cli_runner import Ran, assert_refused, fedhybrid

from fedhybrid.cli import hardlimit, limited
from fedhybrid.cli.hardlimit import HardLimit, limit_problems, planning_under_hard_limit, under_hard_limit
from fedhybrid.cli.subject import Subject, build, capture
from fedhybrid.planner import Plan

MIB = 2**20
SUBJECT = Subject(
    model="mobilenet_v2", options=("width=0.25",), batch=32, input_text="3x32x32", classes=10, optimizer="sgd",
    lr=None, threads=1,
)  # fmt: skip
STEP = ("plan", "resnet20", "--batch", "32", "--input", "3x32x32", "--threads", "1")
needs_limits = pytest.mark.skipif(bool(limit_problems()), reason="; ".join(limit_problems()))


def planned(budget: str) -> Plan:
    built = build(SUBJECT, [])
    assert built is not None
    return capture(built, timed=False).plan(budget)


@pytest.fixture(scope="module")
def ran() -> Ran:
    return fedhybrid(*STEP, "--budget", "30%", "--hard-limit", "--json")


@needs_limits
class TestCommand:
    def test_planned_step_survives_where_eager_dies(self, ran: Ran) -> None:
        assert ran.code == 0, ran
        answer = json.loads(ran.out)
        assert answer["survived"] is True, answer["death"]
        assert answer["eager_survived"] is False
        assert "can't allocate memory" in answer["eager_death"]  # torch's own error, not a signal
        assert answer["death"] is None

    def test_the_limit_is_what_is_held_and_planned_and_the_margin(self, ran: Ran) -> None:
        answer = json.loads(ran.out)
        assert answer["margin_bytes"] == 8 * MIB
        allowance_bytes = answer["peak_bytes"] - answer["resident_bytes"] + answer["margin_bytes"]
        assert answer["hard_limit_bytes"] == answer["warm_base_bytes"] + allowance_bytes
        # Eager needs more than it was allowed, or its death would prove nothing about the plan.
        assert answer["eager_peak_bytes"] - answer["resident_bytes"] > allowance_bytes + 8 * MIB


@pytest.mark.slow
@needs_limits
def test_the_limit_bites_the_planned_step_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 16 MiB less than planned it dies: what was planned is needed, and the limit is one."""
    monkeypatch.setattr(hardlimit, "STEPS", 1)
    limit: HardLimit = under_hard_limit(SUBJECT, planned("60%"), margin_bytes=-16 * MIB)
    assert not limit.planned.survived
    assert "can't allocate memory" in (limit.planned.death or "")


@pytest.mark.slow
@needs_limits
@pytest.mark.parametrize("budget", ["40%", "20%"])
def test_full_size_at_one_mebibyte(budget: str) -> None:
    """MobileNetV2, batch 32: bytes planned are bytes mapped, within 1 MiB."""
    arguments = ("plan", "mobilenet_v2", "--batch", "32", "--input", "3x32x32", "--threads", "1", "--budget", budget)
    answer = json.loads(fedhybrid(*arguments, "--hard-limit", "--margin", "1 MiB", "--json").out)
    assert (answer["survived"], answer["eager_survived"]) == (True, False), answer


@pytest.mark.slow
@needs_limits
def test_planning_needs_no_more_than_the_plan() -> None:
    """Capture, profile and solver on a device that has 40 % of what eager needs, code compiled at first use aside."""
    outcome = planning_under_hard_limit(SUBJECT, planned("40%"), margin_bytes=0)
    assert outcome.survived, outcome.death


@needs_limits
def test_what_a_process_holds_grows_by_what_it_maps() -> None:
    before = limited.held_bytes()
    block = bytearray(64 * MIB)
    assert limited.held_bytes() - before == pytest.approx(len(block), abs=MIB)


class TestRefusal:
    def test_a_margin_that_is_none(self) -> None:
        assert_refused(fedhybrid(*STEP, "--budget", "30%", "--hard-limit", "--margin", "some"), "--margin must be")

    def test_a_system_without_limits_says_so_in_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hardlimit.sys, "platform", "darwin")
        ran = fedhybrid(*STEP, "--budget", "30%", "--hard-limit")
        assert_refused(ran, "--hard-limit needs Linux")
        assert len(ran.errors) == 1
