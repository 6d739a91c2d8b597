"""Tasks that fail in every way: the run goes on, nothing is lost, and the records say what happened to whom."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.run_parts import (
    ALL_FAILURES,
    UNEQUAL,
    assert_books_balance,
    asynchronous,
    last_state,
    model_of,
    small,
    start_s,
)

import fedhybrid as fh
from fedhybrid.experiment import RunResult
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.tree import tensors_of, total_bytes

COHORT = 20
RECIPES = {
    "synchronous": small(
        rounds=15,
        failures=ALL_FAILURES,
        data={"clients": 40, "alpha": 5.0},
        fleet=UNEQUAL | {"clients_per_round": COHORT},
        train={"batch_size": 8, "lr": 0.05, "momentum": 0.5, "steps": 3},
        evaluation={"every": 15},
    ),
    "asynchronous": asynchronous(
        "fedbuff",
        rounds=60,
        failures=ALL_FAILURES,
        data={"clients": 40, "alpha": 5.0},
        schedule={"kind": "asynchronous", "in_flight": 8, "buffer": 3},
        train={"batch_size": 8, "lr": 0.05, "momentum": 0.5, "steps": 3},
        evaluation={"every": 60},
    ),
}
# Everybody is asked in every round.
EVERYBODY: dict[str, Any] = {
    "data": {"clients": 6, "alpha": 5.0},
    "fleet": UNEQUAL | {"clients_per_round": 6},
    "train": {"batch_size": 8, "lr": 0.05, "momentum": 0.5, "steps": 4},
}
_RAN = ("corrupt", "non_finite")  # the whole task is done, what arrives is of no use
_ROUNDING_S = 1e-9


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """A run of each schedule in which three of ten tasks fail."""
    folder = tmp_path_factory.mktemp("failing")
    return {name: fh.run(raw, out=folder / name) for name, raw in RECIPES.items()}


@pytest.fixture(params=RECIPES)
def run(runs: dict[str, RunResult], request: pytest.FixtureRequest) -> RunResult:
    return runs[request.param]


class TestAllKindsAtOnce:
    def test_the_run_completes_and_learns(self, run: RunResult) -> None:
        assert run.summary is not None
        assert run.summary.rounds == len(run.rounds) == run.config["rounds"]
        assert run.summary.final_accuracy > 0.5

    def test_every_kind_occurs_about_as_often_as_asked_for(self, run: RunResult) -> None:
        assert run.summary is not None
        tasks, failures = len(run.clients), run.summary.failures
        assert failures.keys() == ALL_FAILURES.keys()
        assert sum(failures.values()) == pytest.approx(0.3 * tasks, abs=4 * math.sqrt(0.3 * 0.7 * tasks))
        for kind, count in failures.items():
            assert count == pytest.approx(0.05 * tasks, abs=4 * math.sqrt(0.05 * 0.95 * tasks)), kind

    def test_counts_in_the_records_add_up(self, run: RunResult) -> None:
        assert_books_balance(run)
        assert sum(record.completed + record.failed for record in run.rounds) == len(run.clients)

    def test_nothing_is_lost(self, run: RunResult) -> None:
        state = last_state(run.folder)
        assert state.next_ticket == len(run.clients) + len(state.pending)
        if run.config["schedule"]["kind"] == "synchronous":
            assert not state.pending
            assert {len(record.cohort) for record in run.rounds} == {COHORT}
            assert all(len(set(record.cohort)) == COHORT for record in run.rounds)
        else:
            assert {record.completed for record in run.rounds} == {3}

    def test_each_task_has_what_its_end_allows(self, run: RunResult) -> None:
        for task in run.clients:
            ran = task.outcome == "completed" or task.outcome in _RAN
            assert (task.steps > 0) == ran, task
            assert (task.measured_peak_bytes is not None) == ran
            assert (task.train_loss is not None) == (task.outcome == "completed")
            assert bool(task.detail) == (task.outcome != "completed")
            assert task.bytes_down > 0
            whole = task.bytes_down  # a whole model down, a whole update up
            if ran:
                assert task.bytes_up == whole
            elif task.outcome == "disconnected":
                assert task.bytes_up == pytest.approx(whole * _said_ratio(task.detail), abs=0.006 * whole)
            else:
                assert task.bytes_up == 0

    def test_a_task_that_is_never_heard_of_again_is_given_up_late(self, run: RunResult) -> None:
        longest = {
            kind: max(task.virtual_time_s for task in run.clients if task.outcome == kind)
            for kind in ("completed", "time_out", "crash")
        }
        assert longest["time_out"] > longest["completed"]
        assert longest["crash"] < longest["time_out"]

    def test_evaluation_is_as_without_failures(self, run: RunResult) -> None:
        assert run.rounds[-1].accuracy is not None
        assert run.rounds[-1].loss is not None


def _said_ratio(detail: str) -> float:
    """The share in "the connection was lost after 42% of its upload"."""
    (per_cent,) = (word for word in detail.split() if word.endswith("%"))
    return float(per_cent.removesuffix("%")) / 100


class TestModel:
    """A failed update leaves no trace in the model."""

    def test_is_the_same_whatever_the_kind(self, tmp_path: Path) -> None:
        """Two of six clients fail in all three rounds: what they send, if anything, is as if it had never come."""
        models, outcomes = [], []
        for kind in sorted(ALL_FAILURES):
            trace = tmp_path / f"{kind}.csv"
            trace.write_text(f"client,from_s,to_s,kind\n1,0,1e9,{kind}\n4,0,1e9,{kind}\n")
            result = fh.run(small(**EVERYBODY, failures={"trace": str(trace)}), out=tmp_path / kind)
            models.append(model_of(result.folder))
            outcomes.append(
                {(task.client, task.outcome) for task in result.clients}
                == {(1, kind), (4, kind), *((client, "completed") for client in (0, 2, 3, 5))}
            )
        assert all(outcomes)
        assert all(model == models[0] for model in models[1:])

    def test_is_that_of_a_run_in_which_they_were_never_asked(self, tmp_path: Path) -> None:
        """The weak ones: in one run their budgets keep them out, in the other all that they send is damaged."""
        fleet = {"clients_per_round": 6, "tiers": [dict(tier) for tier in UNEQUAL["tiers"]]}
        fleet["tiers"][0]["budget"] = "45%"
        changes = EVERYBODY | {"method": "fedavg", "policy": "exclusion", "fleet": fleet}
        out = fh.run(small(**changes), out=tmp_path / "out")
        strong = {task.client for task in out.clients}
        assert len(strong) == 3
        assert {task.outcome for task in out.clients} == {"completed"}
        trace = tmp_path / "trace.csv"
        rows = [f"{client},0,1e9,{'corrupt' if client % 2 else 'non_finite'}" for client in set(range(6)) - strong]
        trace.write_text("\n".join(["client,from_s,to_s,kind", *rows]) + "\n")
        fleet["tiers"][0]["budget"] = "100%"
        failing = fh.run(small(**changes, failures={"trace": str(trace)}), out=tmp_path / "failing")
        assert len(failing.clients) == 18
        assert {task.client for task in failing.clients if task.outcome == "completed"} == strong
        assert model_of(failing.folder) == model_of(out.folder)

    def test_is_the_initial_one_where_all_fail(self, tmp_path: Path) -> None:
        raw = small(rounds=2, failures={"corrupt": 0.5, "non_finite": 0.5})
        result = fh.run(raw, out=tmp_path / "run")
        assert {task.outcome for task in result.clients} == {"corrupt", "non_finite"}
        initial = tensors_of(build_federation(load_config(raw)).model)
        assert model_of(result.folder) == {name: tensor.numpy().tobytes() for name, tensor in initial.items()}
        assert [record.completed for record in result.rounds] == [0, 0]
        assert {record.bytes_up for record in result.rounds} == {4 * total_bytes(initial)}
        assert_books_balance(result)

    def test_what_a_client_keeps_is_as_before(self, tmp_path: Path) -> None:
        """The errors that a client would add next time stay those of its last update that was of use."""
        traffic = {"up": [{"name": "delta"}, {"name": "error-feedback"}, {"name": "top-k", "ratio": 0.1}]}
        states = []
        for kind in ("crash", "corrupt"):
            trace = tmp_path / f"{kind}.csv"
            trace.write_text(f"client,from_s,to_s,kind\n1,0,1e9,{kind}\n")
            changes = EVERYBODY | {"traffic": traffic, "failures": {"trace": str(trace)}}
            result = fh.run(small(**changes), out=tmp_path / kind)
            kept = last_state(result.folder).client_states
            assert set(kept) == {"0", "2", "3", "4", "5"}
            states.append({path.name: path.read_bytes() for path in (result.folder / "states").iterdir()})
        assert states[0] == states[1]


class TestIncidents:
    def test_happen_to_whom_and_when_the_file_says(self, tmp_path: Path) -> None:
        calm = fh.run(small(rounds=8, **EVERYBODY), out=tmp_path / "calm")
        whole_s = calm.rounds[-1].virtual_time_s
        incidents = [
            (client, share * whole_s, (share + 0.3) * whole_s, kind)
            for client, share, kind in zip(
                (0, 1, 2, 3, 4, 4), (0.0, 0.1, 0.2, 0.3, 0.0, 0.5), sorted(ALL_FAILURES), strict=True
            )
        ]
        trace = tmp_path / "trace.csv"
        lines = [f"{client},{from_s!r},{to_s!r},{kind}" for client, from_s, to_s, kind in incidents]
        trace.write_text("\n".join(["client,from_s,to_s,kind", *lines]) + "\n")
        result = fh.run(small(rounds=8, **EVERYBODY, failures={"trace": str(trace)}), out=tmp_path / "run")
        for task in result.clients:
            begun_s = start_s(task) + _ROUNDING_S
            due = [
                kind for client, from_s, to_s, kind in incidents if client == task.client and from_s <= begun_s < to_s
            ]
            assert task.outcome == (due[0] if due else "completed"), task
        counts = Counter(task.outcome for task in result.clients)
        assert counts.keys() == {"completed", *ALL_FAILURES}
        assert {task.outcome for task in result.clients if task.client == 5} == {"completed"}
        assert_books_balance(result)

    def test_come_before_what_is_drawn(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text("client,from_s,to_s,kind\n" + "".join(f"{client},0,1e9,time_out\n" for client in range(24)))
        raw = small(rounds=1, failures={"crash": 1.0, "trace": str(trace)})
        assert {task.outcome for task in fh.run(raw, out=tmp_path / "run").clients} == {"time_out"}


class TestTimeOut:
    def test_no_task_takes_longer(self, tmp_path: Path) -> None:
        calm = fh.run(small(rounds=3), out=tmp_path / "calm")
        durations_s = sorted(task.virtual_time_s for task in calm.clients)
        timeout_s = durations_s[len(durations_s) // 2]
        result = fh.run(small(rounds=3, schedule={"timeout_s": timeout_s}), out=tmp_path / "run")
        assert result.rounds[0].cohort == calm.rounds[0].cohort
        for task in result.clients:
            assert task.virtual_time_s <= timeout_s + _ROUNDING_S
            if task.outcome == "time_out":
                assert task.virtual_time_s == pytest.approx(timeout_s)
        assert {task.outcome for task in result.clients} == {"completed", "time_out"}
        assert_books_balance(result)


class TestDeadline:
    def test_who_is_late_is_recorded_and_the_round_ends(self, tmp_path: Path) -> None:
        calm = fh.run(small(rounds=4), out=tmp_path / "calm")
        durations_s = sorted(task.virtual_time_s for task in calm.clients)
        deadline_s = durations_s[len(durations_s) // 2]
        result = fh.run(small(rounds=4, schedule={"deadline_s": deadline_s}), out=tmp_path / "run")
        starts_s = [0.0, *(record.virtual_time_s for record in result.rounds)]
        for task in result.clients:
            assert task.outcome in ("completed", "late")
            if task.outcome == "late":
                assert task.virtual_time_s == pytest.approx(deadline_s)
                assert task.train_loss is None
                assert 0 <= task.bytes_up < task.bytes_down
        for begin_s, record in zip(starts_s, result.rounds, strict=False):
            assert record.virtual_time_s - begin_s <= deadline_s + _ROUNDING_S
            if record.late:
                assert record.virtual_time_s - begin_s == pytest.approx(deadline_s)
        # In the first round everything is as without a deadline, but for its end.
        first, late = calm.rounds[0], {t.client for t in calm.clients if t.round == 0 and t.virtual_time_s > deadline_s}
        assert result.rounds[0].cohort == first.cohort
        assert {t.client for t in result.clients if t.round == 0 and t.outcome == "late"} == late
        assert 0 < sum(record.late for record in result.rounds) < len(result.clients)
        assert_books_balance(result)

    def test_in_which_nobody_is_done(self, tmp_path: Path) -> None:
        result = fh.run(small(rounds=2, schedule={"deadline_s": 1e-3}), out=tmp_path / "run")
        assert [record.late for record in result.rounds] == [4, 4]
        assert [record.virtual_time_s for record in result.rounds] == pytest.approx([1e-3, 2e-3])
        initial = tensors_of(build_federation(load_config(small())).model)
        assert model_of(result.folder) == {name: tensor.numpy().tobytes() for name, tensor in initial.items()}
        assert_books_balance(result)


class TestOverSelection:
    @pytest.fixture
    def over(self, tmp_path: Path) -> RunResult:
        return fh.run(small(rounds=5, schedule={"over_selection_ratio": 1.6}), out=tmp_path / "run")

    def test_the_first_are_used_and_the_others_are_late(self, over: RunResult) -> None:
        for record in over.rounds:
            tasks = [task for task in over.clients if task.round == record.round]
            assert len(tasks) == len(record.cohort) == 7  # 4 times 1.6, rounded up
            assert [task.outcome for task in tasks] == ["completed"] * 4 + ["late"] * 3
            used = tasks[:4]
            assert max(task.at_s for task in used) == record.virtual_time_s
            assert {task.at_s for task in tasks[4:]} == {record.virtual_time_s}
            assert (record.completed, record.late) == (4, 3)
        assert_books_balance(over)

    def test_they_are_those_who_would_have_been_first(self, over: RunResult, tmp_path: Path) -> None:
        """With everybody waited for, the same cohort ends in the same order."""
        patient = fh.run(small(rounds=1, fleet=UNEQUAL | {"clients_per_round": 7}), out=tmp_path / "patient")
        assert patient.rounds[0].cohort == over.rounds[0].cohort
        first = [task.client for task in patient.clients][:4]
        assert [task.client for task in over.clients][:4] == first

    def test_failures_are_replaced_by_those_who_wait(self, tmp_path: Path) -> None:
        raw = small(rounds=8, failures=ALL_FAILURES, schedule={"over_selection_ratio": 2.0})
        result = fh.run(raw, out=tmp_path / "run")
        for record in result.rounds:
            assert len(record.cohort) == 8
            assert record.completed == 4 or (record.completed < 4 and record.late == 0)
        assert any(record.completed == 4 and record.failed > record.late for record in result.rounds)
        assert_books_balance(result)

    def test_with_a_deadline_too(self, over: RunResult, tmp_path: Path) -> None:
        """The rounds that took longest before now end with what is there."""
        starts_s = [0.0, *(record.virtual_time_s for record in over.rounds)]
        took_s = [record.virtual_time_s - begin_s for begin_s, record in zip(starts_s, over.rounds, strict=False)]
        deadline_s = sorted(took_s)[2]
        raw = small(rounds=5, schedule={"over_selection_ratio": 1.6, "deadline_s": deadline_s + _ROUNDING_S})
        result = fh.run(raw, out=tmp_path / "again")
        assert [record.cohort for record in result.rounds] == [record.cohort for record in over.rounds]
        assert [record.completed == 4 for record in result.rounds] == [each_s <= deadline_s for each_s in took_s]
        assert_books_balance(result)
