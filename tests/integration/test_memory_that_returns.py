"""Memory that is away for a while: runs wait for it, with rounds and without, and can be stopped meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.run_parts import (
    Stop,
    Stopper,
    assert_books_balance,
    assert_same_run,
    asynchronous,
    slow_device,
    small,
    start_s,
)

import fedhybrid as fh


def comes_back(folder: Path, *, window_s: float) -> dict[str, Any]:
    """A tenth of every budget for a minute, all of it for five minutes, and again."""
    path = folder / "comes-back.csv"
    path.write_text("client,time_s,available\na,0,100\na,60,1000\na,359,1000\n")
    return {"file": str(path), "predictor": "last-value", "window_s": window_s}


class TestMemoryThatComesBack:
    """While nobody is fit, time passes: a run waits for memory instead of burning rounds and tasks at one moment."""

    @pytest.mark.parametrize("window_s", [20.0, 7.0])
    def test_rounds_wait_for_it(self, window_s: float, tmp_path: Path) -> None:
        fleet = small()["fleet"] | {"memory": comes_back(tmp_path, window_s=window_s)}
        result = fh.run(small(method="fedhybrid", policy="fedhybrid", fleet=fleet, rounds=4), out=tmp_path / "run")
        assert all(len(record.cohort) == 4 for record in result.rounds)
        assert {task.outcome for task in result.clients} == {"completed"}
        first_s = min(start_s(task) for task in result.clients)
        assert first_s == pytest.approx(-(-60 // window_s) * window_s), "the first window that begins with memory"

    def test_rounds_in_which_it_never_comes_back_end(self, tmp_path: Path) -> None:
        tiers = [tier | {"budget": "8%"} for tier in small()["fleet"]["tiers"]]
        fleet = {"clients_per_round": 4, "tiers": tiers, "memory": comes_back(tmp_path, window_s=20.0)}
        result = fh.run(small(method="fedhybrid", policy="fedhybrid", fleet=fleet, rounds=2), out=tmp_path / "run")
        assert list(result.clients) == []
        times_s = [record.virtual_time_s for record in result.rounds]
        assert 360 < times_s[0] < times_s[1], "at least one whole pass through the trace"

    @pytest.mark.parametrize(("method", "in_flight", "window_s"), [("fedasync", 4, 20.0), ("fedbuff", 20, 2.0)])
    def test_without_rounds_few_are_asked_in_vain(
        self, method: str, in_flight: int, window_s: float, tmp_path: Path
    ) -> None:
        """In each window before it comes back as many as may be at work, and after it nobody any more.

        In the first window each refusal but the last of the row has another client asked.
        """
        fleet = small()["fleet"] | {"memory": comes_back(tmp_path, window_s=window_s)}
        schedule = asynchronous(method)["schedule"] | {"in_flight": in_flight}
        result = fh.run(asynchronous(method, fleet=fleet, schedule=schedule, rounds=6), out=tmp_path / "run")
        refused = [task for task in result.clients if task.outcome == "out_of_memory"]
        assert len(refused) == in_flight * 60 / window_s + in_flight - 1
        for task in refused[2 * in_flight - 1 :]:
            away_s = abs(start_s(task) - round(start_s(task) / window_s) * window_s)
            assert away_s < 1e-6, "all are asked when a window begins"
        assert all(record.completed for record in result.rounds), "no aggregation is given up meanwhile"
        assert max(start_s(task) for task in refused) < 60 <= result.rounds[0].virtual_time_s
        assert_books_balance(result)

    def test_without_rounds_a_fit_policy_waits_for_it(self, tmp_path: Path) -> None:
        fleet = small()["fleet"] | {"memory": comes_back(tmp_path, window_s=20.0)}
        result = fh.run(asynchronous(policy="fedhybrid", fleet=fleet, rounds=6), out=tmp_path / "run")
        assert {task.outcome for task in result.clients} == {"completed"}
        assert min(start_s(task) for task in result.clients) == pytest.approx(60)

    def test_a_stop_changes_nothing(self, tmp_path: Path) -> None:
        """Tasks take longer than a window, and several low times pass."""
        tiers = [
            {"name": "slow", "budget": "150%", "device": slow_device(tmp_path, "slow", times=1e4)},
            {"name": "slower", "budget": "190%", "device": slow_device(tmp_path, "slower", times=3e4)},
        ]
        fleet = {"clients_per_round": 6, "tiers": tiers, "memory": comes_back(tmp_path, window_s=7.0)}
        raw = asynchronous(rounds=30, fleet=fleet)
        whole = fh.run(raw, out=tmp_path / "whole")
        assert {task.outcome for task in whole.clients} >= {"completed", "out_of_memory"}
        assert whole.rounds[-1].virtual_time_s > 780
        every = {"checkpoint_every": 1}
        for at_round in (0, 8, 21):
            with pytest.raises(Stop):
                fh.run(raw | every, out=tmp_path / "run", resume=at_round > 0, progress=Stopper(at_round=at_round))
        fh.run(raw | every, out=tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / "run")
