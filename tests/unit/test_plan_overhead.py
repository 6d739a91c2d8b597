"""What plans cost: the benchmark's table against numbers worked out by hand, and its plans against measured peaks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federation_parts import BATCH, recipe
from torch import nn
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.executor import prepare_step
from fedhybrid.experiment import build_federation, load_config
from fedhybrid.planner import Plan

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def row(tier: str, plans: str, measured: float | None, *, own: bool = True, peak_bytes: int = 90) -> dict[str, Any]:
    start = {"setting": "s", "tier": tier, "plans": plans, "budget_bytes": 100, "plan": None, "own": own}
    if measured is None:
        return start
    return start | {
        "solver": f"{plans} solver",
        "decisions": [[["tensor", 1, plans]] if measured else [], plans],
        "peak_bytes": peak_bytes,
        "measured_peak_bytes": 90,
        "plain_step_s": 0.0125,
        "device_overhead_ratio": 2 * measured,
        "priced_overhead_ratio": 0.1,
        "measured_overhead_ratio": measured,
        "measured_quartile_ratios": [measured - 0.01, measured + 0.01],
    }


def test_means_and_factors_are_of_those_that_have_plans_of_their_own() -> None:
    from showing import overhead_table  # noqa: PLC0415 - the folder is on the path only here

    table = overhead_table(
        [
            *(row("25%", "ours", 0.1), row("25%", "theirs", 0.9, own=False)),
            *(row("40%", "ours", 0.1), row("40%", "theirs", 0.6)),
            *(row("60%", "ours", 0.3), row("60%", "theirs", 0.2, peak_bytes=101)),
            *(row("80%", "ours", 0.1), row("80%", "theirs", None)),
            *(row("100%", "ours", 0.0), row("100%", "theirs", 0.0)),
        ],
        ["theirs", "ours"],
    )
    ours = "ours solver | +20.0% | +10.0% | +10.0% (+9.0% to +11.0%) |"
    assert f"| s | 25% | 12.5 ms | stands in | +180.0% | +10.0% | +90.0% (+89.0% to +91.0%) | {ours}" in table
    assert f"| s | 80% | 12.5 ms | no plan |  |  |  | {ours}" in table
    every, own = table.split("| mean of 3 as devices run them |")[1].split("| mean of 2 in which each has")
    assert "| theirs | +113.3% | +10.0% | +56.7% |" in every
    assert "| theirs / ours | 3.40 | 1.00 | 3.40 |" in every
    assert "| theirs | +80.0% | +10.0% | +40.0% |" in own
    assert "| ours | +40.0% | +10.0% | +20.0% |" in own
    assert "| theirs / ours | 2.00 | 1.00 | 2.00 |" in own
    assert "Of these 2 plans, ours decide the same as theirs in 0; in the other 2, ours cost less in 1 as" in table
    assert "Tiers where theirs are missing: 2. There ours are found in 2, at +20.0% to +20.0% of a step" in table
    assert "nothing is decided: s 100%." in table
    assert "8 of 9 are the planned ones to the byte, 0 above the budget" in table


def test_equal_plans_are_no_win() -> None:
    from showing import overhead_table  # noqa: PLC0415

    one, other = row("40%", "theirs", 0.6), row("40%", "ours", 0.1)
    table = overhead_table([one, {**other, "decisions": one["decisions"]}], ["theirs", "ours"])
    assert "Of these 1 plans, ours decide the same as theirs in 1." in table
    assert "missing" not in table


def test_the_first_is_compared_with_each_other() -> None:
    from showing import overhead_table  # noqa: PLC0415

    rows = [row("40%", kind, ratio) for kind, ratio in (("theirs", 0.6), ("ours", 0.1), ("mixed", 0.3))]
    table = overhead_table(rows, ["theirs", "ours", "mixed"])
    assert "| theirs / ours | 6.00 | 1.00 | 6.00 |" in table
    assert "| theirs / mixed | 2.00 | 1.00 | 2.00 |" in table
    assert "Of these 1 plans, mixed decide the same as theirs in 0; in the other 1, mixed cost less in 1" in table


def test_overheads_are_those_of_real_steps_and_leave_nothing_behind() -> None:
    import plan_overhead  # noqa: PLC0415

    model = nn.Sequential(nn.Flatten(), *(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)))
    batch = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
    prepared = prepare_step(model, F.cross_entropy, batch, fh.SGD(lr=0.1))
    plans = {"small": prepared.smallest(actions=("recompute",)), "whole": prepared.keep_all()}
    before = {name: each.clone() for name, each in prepared.model.state_dict().items()}
    found = plan_overhead.measure(prepared, plans, steps=2, turns=3)
    assert all(torch.equal(each, before[name]) for name, each in prepared.model.state_dict().items())
    for kind, plan in plans.items():
        assert found[kind]["measured_peak_bytes"] == found[kind]["peak_bytes"] == plan.peak_bytes
        low, high = found[kind]["measured_quartile_ratios"]
        assert low <= found[kind]["measured_overhead_ratio"] <= high
    assert found["small"]["peak_bytes"] < found["whole"]["peak_bytes"]
    assert found["small"]["priced_overhead_ratio"] > found["whole"]["priced_overhead_ratio"] == 0
    assert found["whole"]["decisions"][0] == []


def test_plans_are_those_of_the_runs(tmp_path: Path) -> None:
    import plan_overhead  # noqa: PLC0415

    planner = {
        "solver": "greedy-mps",
        "actions": ["recompute", "encode"],
        "codecs": ["channel-mix"],
        "max_gradient_error": math.inf,
    }
    small = recipe(policy="round-robin", rounds=1, data={"clients": 6}, planner=planner)
    run = fh.run(small, out=tmp_path / "run")
    job = build_federation(load_config(small), values=False)
    batch = job.dataset.train.batch(torch.arange(BATCH))
    prepared = prepare_step(job.model, classification_loss, batch, job.optimizer)
    book = plan_overhead._book(job, prepared, tmp_path / "book")
    tasks = {(task.device, task.budget_bytes): task.plan for task in run.clients}
    assert len(tasks) == 2
    for (device, budget_bytes), plan in tasks.items():
        assert plan is not None
        assert book.choose(device, budget_bytes) == plan
        stored = Plan.from_json((tmp_path / "run/plans" / f"{plan}.json").read_text())
        assert book.program(device, plan).key == stored.key


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--turns", "1"], "argument --turns: needs a whole number of at least 2, got '1'"),
        (["--settings", "uci-har,mnist"], "argument --settings: mnist is none of uci-har, fashion-mnist"),
    ],
)
def test_wrong_words_are_named(
    words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import plan_overhead  # noqa: PLC0415

    monkeypatch.setattr("sys.argv", ["plan_overhead.py", "--root", "x", *words])
    with pytest.raises(SystemExit):
        plan_overhead.main()
    assert problem in capsys.readouterr().err


def test_a_missing_folder_of_data_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import plan_overhead  # noqa: PLC0415

    monkeypatch.setattr("sys.argv", ["plan_overhead.py", "--root", str(tmp_path / "none"), "--settings", "uci-har"])
    assert plan_overhead.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
