"""What plans cost: the benchmark's table against numbers worked out by hand, and its plans against measured peaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.executor import prepare_step

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def row(tier: str, plans: str, measured: float, *, peak_bytes: int = 90, measured_bytes: int = 90) -> dict[str, Any]:
    return {
        "setting": "s",
        "tier": tier,
        "plans": plans,
        "budget_bytes": 100,
        "peak_bytes": peak_bytes,
        "measured_peak_bytes": measured_bytes,
        "device_overhead_ratio": 2 * measured,
        "priced_overhead_ratio": 0.1,
        "measured_overhead_ratio": measured,
    }


def test_means_and_factors_are_of_tiers_that_have_both() -> None:
    from showing import overhead_table  # noqa: PLC0415 - the folder is on the path only here

    table = overhead_table(
        [
            row("25%", "theirs", 0.6),
            row("25%", "ours", 0.1),
            row("40%", "theirs", 0.2, measured_bytes=91),
            row("40%", "ours", 0.3),
            row("60%", "ours", 0.9, peak_bytes=101, measured_bytes=101),
        ]
    )
    assert "| s | 25% | +120.0% | +10.0% | +60.0% | +20.0% | +10.0% | +10.0% |" in table
    assert "| s | 60% | no plan | no plan | no plan | +180.0% | +10.0% | +90.0% |" in table
    assert "| mean of 2 with both | | +80.0% | +10.0% | +40.0% | +40.0% | +10.0% | +20.0% |" in table
    assert "theirs / ours: 2.00 (for its device), 1.00 (priced here), 2.00 (measured)" in table
    assert "Measured, ours is lower in 1 of 2" in table
    assert "4 of 5 are the planned ones to the byte, 1 above the budget" in table


def test_overheads_are_those_of_real_steps() -> None:
    import plan_overhead  # noqa: PLC0415

    model = nn.Sequential(nn.Flatten(), *(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)))
    batch = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
    prepared = prepare_step(model, F.cross_entropy, batch, fh.SGD(lr=0.1))
    plans = {"small": prepared.smallest(actions=("recompute",)), "whole": prepared.keep_all()}
    found = plan_overhead._measured(prepared, plans, 3)
    for kind, plan in plans.items():
        assert found[kind]["measured_peak_bytes"] == found[kind]["peak_bytes"] == plan.peak_bytes
        assert found[kind]["measured_overhead_ratio"] > -1
    assert found["small"]["peak_bytes"] < found["whole"]["peak_bytes"]
    assert found["small"]["priced_overhead_ratio"] > found["whole"]["priced_overhead_ratio"] == 0
