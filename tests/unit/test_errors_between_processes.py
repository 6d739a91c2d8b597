"""Every error that a variant's process may report arrives as it was raised."""

from __future__ import annotations

import json

import pytest

from fedhybrid import errors
from fedhybrid.errors import CaptureError, ConfigError, FedHybridError, InfeasibleBudgetError, PlanMismatchError
from fedhybrid.experiment.wire import from_wire, to_wire

ERRORS = [
    CaptureError("line 3 of net.py", "it branches on values", "Use torch.where."),
    ConfigError(["first", "second"]),
    InfeasibleBudgetError(needed_bytes=3, budget_bytes=2, blocker="conv"),
    PlanMismatchError(expected="aa", found="bb"),
]


def test_these_are_all() -> None:
    known = {getattr(errors, name) for name in errors.__all__} - {FedHybridError}
    assert {type(error) for error in ERRORS} == known


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_arrives(error: FedHybridError) -> None:
    arrived = from_wire(json.loads(json.dumps(to_wire(error))), "ours")
    assert type(arrived) is type(error)
    if isinstance(error, ConfigError):
        assert str(arrived) == "ours: first\nours: second"
    else:
        assert (str(arrived), vars(arrived)) == (str(error), vars(error))


def test_a_type_of_somebody_else_is_still_said() -> None:
    class OwnError(FedHybridError):
        pass

    assert str(from_wire(to_wire(OwnError("no")), "ours")) == "ours: no"
