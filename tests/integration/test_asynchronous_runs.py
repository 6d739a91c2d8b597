"""Asynchronous runs: what the server does whenever updates come, seen from the records of whole small runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.integration.cli_runner import assert_refused, fedhybrid
from tests.run_parts import (
    assert_books_balance,
    assert_same_run,
    asynchronous,
    last_state,
    small,
    start_s,
    trained,
)

import fedhybrid as fh
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import RunResult
from fedhybrid.records import ClientRecord

IN_FLIGHT = 4
MOST = 2
_ROUNDING_S = 1e-9  # a task's beginning is its end less its duration
METHODS = {"fedasync": 60, "fedbuff": 25}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """One run of each method."""
    folder = tmp_path_factory.mktemp("asynchronous")
    return {
        method: fh.run(asynchronous(method, rounds=rounds, evaluation={"every": rounds}), out=folder / method)
        for method, rounds in METHODS.items()
    }


@pytest.fixture(params=METHODS)
def run(runs: dict[str, RunResult], request: pytest.FixtureRequest) -> RunResult:
    return runs[request.param]


class TestRecords:
    def test_learns(self, run: RunResult) -> None:
        assert run.summary is not None
        assert run.summary.final_accuracy > 0.6
        assert run.summary.schedule in ("asynchronous", "semi-asynchronous")

    def test_books_balance(self, run: RunResult) -> None:
        assert_books_balance(run)

    def test_each_aggregation_has_as_many_updates_as_asked_for(self, run: RunResult) -> None:
        buffer = run.config["schedule"]["buffer"]
        assert {record.completed for record in run.rounds} == {buffer}

    def test_every_task_ends_once_or_is_still_under_way(self, run: RunResult) -> None:
        state = last_state(run.folder)
        assert len(state.pending) == IN_FLIGHT - 1  # the last update has come, and nobody is asked any more
        assert len(run.clients) + len(state.pending) == state.next_ticket
        ended = [(task.client, start_s(task)) for task in run.clients]
        assert len(set(ended)) == len(ended)
        assert {each.ticket for each in state.pending} <= set(range(state.next_ticket))

    def test_clock_and_ends_agree(self, run: RunResult) -> None:
        ends = [task.at_s for task in run.clients]
        assert ends == sorted(ends)
        for record in run.rounds:
            assert max(task.at_s for task in run.clients if task.round == record.round) == record.virtual_time_s

    def test_tasks_outlive_aggregations(self, run: RunResult) -> None:
        assert run.summary is not None
        assert run.summary.staleness_mean is not None
        assert run.summary.staleness_mean > 0.5
        assert {task.staleness for task in run.clients} > {0, 1}

    def test_staleness_is_the_aggregations_between_start_and_end(self, run: RunResult) -> None:
        ends_s = [record.virtual_time_s for record in run.rounds]
        for task in run.clients:
            known = sum(end_s <= start_s(task) + _ROUNDING_S for end_s in ends_s)
            assert task.staleness == task.round - known, task

    def test_mean_staleness_is_that_of_the_updates_used(self, run: RunResult) -> None:
        for record in run.rounds:
            used = [task for task in run.clients if task.round == record.round and task.outcome == "completed"]
            assert record.staleness_mean == pytest.approx(sum(task.staleness for task in used) / len(used))


class TestTasksUnderWay:
    def test_never_more_than_asked_for_and_hardly_ever_fewer(self, run: RunResult) -> None:
        moments = sorted(
            [(start_s(task) + _ROUNDING_S, 1) for task in run.clients]
            + [(each.start_s + _ROUNDING_S, 1) for each in last_state(run.folder).pending]
            + [(task.at_s, -1) for task in run.clients]
        )
        under_way, counts = 0, []
        for (at_s, change), (next_s, _) in zip(moments, [*moments[1:], moments[-1]], strict=True):
            under_way += change
            if next_s - at_s > 2 * _ROUNDING_S:  # between an end and the next beginning, no time passes
                counts.append(under_way)
        assert len(counts) >= len(run.rounds)
        assert set(counts) == {IN_FLIGHT}

    def test_no_client_has_two_tasks_at_once(self, run: RunResult) -> None:
        times: dict[int, list[tuple[float, float]]] = {}
        for task in run.clients:
            times.setdefault(task.client, []).append((start_s(task), task.at_s))
        for each in last_state(run.folder).pending:
            times.setdefault(each.task.client, []).append((each.start_s, float("inf")))
        assert any(len(of_one) > 1 for of_one in times.values())
        for of_one in times.values():
            of_one.sort()
            for (_, end), (begin, _) in pairwise(of_one):
                assert begin > end - _ROUNDING_S

    def test_clients_differ_in_speed_and_take_part_accordingly(self, run: RunResult) -> None:
        slowest, fastest = (pick(task.virtual_time_s for task in run.clients) for pick in (max, min))
        assert slowest > 3 * fastest


class TestPlans:
    def test_weak_devices_train_with_less_than_the_unplanned_step_needs(self, run: RunResult) -> None:
        assert run.summary is not None
        weak = [task for task in run.clients if task.tier == "weak"]
        assert weak
        assert {task.outcome for task in weak} == {"completed"}
        for task in weak:
            assert task.plan is not None
            assert task.measured_peak_bytes is not None
            assert task.measured_peak_bytes == task.planned_peak_bytes
            assert task.measured_peak_bytes <= task.budget_bytes < run.summary.eager_peak_bytes

    def test_off_as_the_method_has_it(self, tmp_path: Path) -> None:
        raw = asynchronous(rounds=6, planner={"enabled": "auto"})
        result = fh.run(raw, out=tmp_path / "run")
        assert {(task.tier, task.outcome) for task in result.clients} == {
            ("weak", "out_of_memory"),
            ("strong", "completed"),
        }
        assert {record.completed for record in result.rounds} == {1}
        assert_books_balance(result)


class TestAgain:
    @pytest.mark.parametrize("method", METHODS)
    def test_same_recipe_and_seed_give_the_same_run(self, method: str, tmp_path: Path) -> None:
        raw = asynchronous(method, rounds=8)
        for name in ("one", "two"):
            fh.run(raw, out=tmp_path / name)
        assert_same_run(tmp_path / "one", tmp_path / "two")

    def test_another_seed_gives_another_run(self, runs: dict[str, RunResult], tmp_path: Path) -> None:
        other = fh.run(asynchronous(rounds=3, seed=6), out=tmp_path / "run")
        assert [task.client for task in other.clients] != [task.client for task in runs["fedasync"].clients[:3]]

    def test_more_aggregations_can_be_asked_for_later(self, tmp_path: Path) -> None:
        """The tasks that were under way at the end come back; nothing is begun again."""
        fh.run(asynchronous(rounds=9), out=tmp_path / "whole")
        fh.run(asynchronous(rounds=4), out=tmp_path / "run")
        fh.run(asynchronous(rounds=9), out=tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Updates that are older than two aggregations are refused."""
    schedule = {"kind": "asynchronous", "in_flight": 6, "max_staleness": MOST}
    return fh.run(asynchronous(rounds=15, schedule=schedule), out=tmp_path_factory.mktemp("strict") / "run")


class TestMaxStaleness:
    def test_older_updates_are_not_used(self, strict: RunResult) -> None:
        by_outcome: dict[str, list[ClientRecord]] = {}
        for task in trained(strict.clients):
            by_outcome.setdefault(task.outcome, []).append(task)
        assert by_outcome.keys() == {"completed", "stale"}
        assert max(task.staleness for task in by_outcome["completed"]) == MOST
        assert min(task.staleness for task in by_outcome["stale"]) > MOST
        assert {record.completed for record in strict.rounds} == {1}
        assert max(record.staleness_mean or 0 for record in strict.rounds) <= MOST

    def test_what_they_cost_is_counted(self, strict: RunResult) -> None:
        assert_books_balance(strict)
        stale = [task for task in strict.clients if task.outcome == "stale"]
        for task in stale:
            assert task.steps > 0
            assert task.measured_peak_bytes == task.planned_peak_bytes is not None
            assert task.bytes_up == task.bytes_down > 0
            assert f"at most {MOST} are used" in task.detail


class TestSmallFleet:
    def test_as_many_at_work_as_there_are(self, tmp_path: Path) -> None:
        raw = asynchronous(
            rounds=6, data={"clients": 4, "alpha": 5.0}, schedule={"kind": "asynchronous", "in_flight": 4}
        )
        result = fh.run(raw, out=tmp_path / "run")
        assert {record.completed for record in result.rounds} == {1}
        assert last_state(result.folder).next_ticket == 4 + 5  # each of the four, and one more after each aggregation

    def test_nobody_who_could_ever_end_a_task(self, tmp_path: Path) -> None:
        """Every device refuses its task: each aggregation gives up after a while and the run ends."""
        raw = asynchronous(rounds=2, planner={"enabled": "off"})
        weak = [{"name": "weak", "budget": "45%", "device": "raspberry-pi-4"}]
        result = fh.run(raw, out=tmp_path / "run", overrides={"fleet.tiers": weak})
        assert [(record.completed, record.train_loss, record.staleness_mean) for record in result.rounds] == [
            (0, None, None)
        ] * 2
        assert {task.outcome for task in result.clients} == {"out_of_memory"}
        assert {task.staleness for task in result.clients} == {0}  # without an update there is no aggregation
        assert_books_balance(result)


class TestRefusal:
    @pytest.mark.parametrize("method", ["fedavg", "fedhybrid", "fedprox"])
    def test_method_that_is_not_asynchronous(self, method: str, tmp_path: Path) -> None:
        raw = small(method=method, schedule={"kind": "asynchronous"})
        with pytest.raises(ConfigError) as caught:
            fh.run(raw, out=tmp_path / "run")
        (problem,) = caught.value.problems
        assert f"method '{method}' does not know how to combine updates of different staleness" in problem
        assert "use one of fedasync, fedbuff" in problem
        assert not (tmp_path / "run").exists()

    def test_one_line_on_the_command_line(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.toml").write_text('method = "fedavg"\nmodel = "cnn"\ndataset = "digits"\n')
        ran = fedhybrid("run", tmp_path / "recipe.toml", "schedule.kind=asynchronous", "--out", tmp_path / "run")
        assert_refused(ran, "schedule.kind is 'asynchronous', but method 'fedavg'")
        assert len(ran.errors) == 1

    def test_options_of_the_other_schedule(self, tmp_path: Path) -> None:
        raw = asynchronous(schedule={"kind": "asynchronous", "deadline_s": 1.0}, evaluation={"clients": 2})
        with pytest.raises(ConfigError, match="are for synchronous rounds"):
            fh.run(raw, out=tmp_path / "run")
        with pytest.raises(ConfigError, match="are for the asynchronous schedule"):
            fh.run(small(schedule={"buffer": 3}), out=tmp_path / "run")


class TestBatchNorm:
    """Its statistics are buffers; stale differences of a variance, added up, would leave less than nothing."""

    @pytest.mark.parametrize(("method", "buffer"), [("fedbuff", 1), ("fedbuff", 3), ("fedasync", 1)])
    def test_variances_stay_positive_and_it_learns(self, method: str, buffer: int, tmp_path: Path) -> None:
        raw: dict[str, Any] = {
            "method": method, "policy": "uniform", "model": "resnet20", "model_options": {"width": 0.25},
            "dataset": "digits", "rounds": 24 // buffer, "seed": 2, "data": {"clients": 10, "alpha": 1.0},
            "train": {"batch_size": 16, "lr": 0.05, "steps": 4},
            "schedule": {"kind": "asynchronous", "in_flight": 8, "buffer": buffer},
            "evaluation": {"every": 4},
        }  # fmt: skip
        result = fh.run(raw, out=tmp_path / "run")
        weights = load_file(tmp_path / "run/model.safetensors")
        variances = [tensor for name, tensor in weights.items() if name.endswith("running_var")]
        assert variances
        assert all(bool((variance > 0).all()) for variance in variances)
        assert all(record.loss is not None for record in result.rounds if record.accuracy is not None)
        assert max(task.staleness for task in result.clients) > 2


def test_what_a_client_keeps_counts_only_with_an_update_that_is_used(tmp_path: Path) -> None:
    """With error feedback an update that is too stale leaves the client with what it had, to be sent later."""
    up = [{"name": "delta"}, {"name": "error-feedback"}, {"name": "top-k", "ratio": 0.05}]
    raw = asynchronous(rounds=6, traffic={"up": up})
    raw["schedule"] |= {"in_flight": 6, "max_staleness": 0}
    result = fh.run(raw, out=tmp_path / "run")
    used = {task.client for task in result.clients if task.outcome == "completed"}
    assert {task.outcome for task in result.clients} >= {"completed", "stale"}
    assert {int(path.name.split(".")[0]) for path in (tmp_path / "run/states").iterdir()} == used
