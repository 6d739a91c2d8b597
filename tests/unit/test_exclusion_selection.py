"""Exclusion: who passes the gate, and that all who do are alike."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.selection_parts import candidates

from fedhybrid.errors import ConfigError
from fedhybrid.selection import Exclusion


@pytest.mark.parametrize(
    ("gate", "fit"), [("unplanned", {0, 1}), ("planned", {0, 1, 2, 3}), ("none", {0, 1, 2, 3, 4, 5})]
)
def test_the_gate_decides_who_can_be_drawn(gate: str, fit: set[int]) -> None:
    """Two hold the step, two more can run a plan, two nothing."""
    seen = candidates(
        budget_bytes=np.array([100, 150, 60, 50, 20, 10]),
        round_s=np.array([60.0, 60.0, 90.0, 90.0, np.inf, np.inf]),
    )
    policy, state, drawn = Exclusion(memory_gate=gate), Exclusion().init(), []
    for round_index in range(300):
        cohort, state = policy.select(seen, 2, state, round_index=round_index, seed=9)
        assert len(cohort) == 2
        drawn += cohort.tolist()
    assert set(drawn) == fit
    shares = np.bincount(drawn, minlength=6)[sorted(fit)] / len(drawn)
    assert np.abs(shares - 1 / len(fit)).max() < 0.06


def test_a_gate_that_is_none() -> None:
    with pytest.raises(ConfigError, match="memory_gate"):
        Exclusion(memory_gate="all")
