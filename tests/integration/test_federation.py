"""Whole small federations: inside their budgets, reproducible, and able to go on after `kill -9`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.federation_parts import recipe
from tests.run_parts import assert_same_run, rounds_of

import fedhybrid as fh
from fedhybrid.errors import CaptureError, ConfigError
from fedhybrid.experiment import RunResult
from fedhybrid.records import ClientRecord, RoundRecord, Summary

ROOT = Path(__file__).parents[2]
VARIANTS = {"variants": {"ours": {}, "theirs": {"method": "fedavg", "policy": "exclusion"}}}


_BRANCHING = """
from torch import nn


class Net(nn.Module):
    def __init__(self, *, input_shape, classes):
        super().__init__()
        self.head = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes)

    def forward(self, x):
        y = self.head(x.flatten(1))
        return y if y.sum() > 0 else -y
"""


@pytest.fixture(scope="module")
def heard() -> _Listener:
    """What `whole` told while it ran."""
    return _Listener()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, heard: _Listener) -> RunResult:
    """Five rounds without a stop."""
    return fh.run(recipe(rounds=5), out=tmp_path_factory.mktemp("whole") / "run", progress=heard)


@pytest.fixture(scope="module")
def two_variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round of two variants, one after the other in this process."""
    out = tmp_path_factory.mktemp("variants") / "run"
    fh.run(recipe(rounds=1, compare=VARIANTS), out=out, processes=1)
    return out


class TestBudgets:
    def test_every_task_stays_inside_its_budget_and_as_planned(self, whole: RunResult) -> None:
        tasks = [task for task in whole.clients if task.outcome == "completed"]
        assert len(tasks) == 15
        for task in tasks:
            assert task.planned_peak_bytes is not None
            assert task.measured_peak_bytes is not None
            assert task.measured_peak_bytes <= task.budget_bytes
            assert abs(task.planned_peak_bytes - task.measured_peak_bytes) <= 0.01 * task.measured_peak_bytes

    def test_weak_devices_take_part_with_less_than_the_unplanned_step_needs(self, whole: RunResult) -> None:
        summary = whole.summary
        assert summary is not None
        weak = [task for task in whole.clients if task.tier == "weak"]
        assert {task.outcome for task in weak} == {"completed"}
        assert all(task.budget_bytes < summary.eager_peak_bytes for task in weak)

    def test_plans_do_not_change_what_is_learnt(self, tmp_path: Path) -> None:
        """The proof that planning is free of loss: the same cohorts without budgets end in the same bytes."""
        ample = [{"name": "all", "budget": "100%", "device": "laptop"}]
        planned = recipe(policy="uniform", rounds=2)
        fh.run(planned, out=tmp_path / "planned")
        fh.run(planned, out=tmp_path / "ample", overrides={"method": "fedavg", "fleet.tiers": ample})
        one, two = fh.load_run(tmp_path / "planned"), fh.load_run(tmp_path / "ample")
        assert {task.tier for task in one.clients} == {"weak", "strong"}
        assert [r.accuracy for r in one.rounds] == [r.accuracy for r in two.rounds]
        assert (tmp_path / "planned/model.safetensors").read_bytes() == (
            tmp_path / "ample/model.safetensors"
        ).read_bytes()

    def test_without_plans_weak_devices_fail_and_the_run_goes_on(self, tmp_path: Path) -> None:
        result = fh.run(recipe(method="fedavg", policy="uniform"), out=tmp_path / "run")
        failed = [task for task in result.clients if task.outcome != "completed"]
        assert {(task.tier, task.outcome) for task in failed} == {("weak", "out_of_memory")}
        assert all(task.measured_peak_bytes is None and "needs" in task.detail for task in failed)
        assert len(result.rounds) == 3
        assert result.summary is not None
        assert result.summary.failures == {"out_of_memory": len(failed)}
        assert result.summary.budget_violations == 0

    def test_rounds_that_nobody_can_do_are_recorded(self, tmp_path: Path) -> None:
        """No cohort at all under `exclusion`, a cohort that fails as a whole under `uniform`."""
        weak = [{"name": "weak", "budget": "45%", "device": "raspberry-pi-4"}]
        for policy, cohort_size in (("exclusion", 0), ("uniform", 3)):
            raw = recipe(method="fedavg", policy=policy, rounds=2)
            result = fh.run(raw, out=tmp_path / policy, overrides={"fleet.tiers": weak})
            assert [len(r.cohort) for r in result.rounds] == [cohort_size] * 2
            assert [(r.completed, r.train_loss) for r in result.rounds] == [(0, None)] * 2
            assert len({r.accuracy for r in result.rounds}) == 1


class TestRecords:
    def test_files_of_a_run(self, whole: RunResult) -> None:
        names = {path.name for path in whole.folder.iterdir()}
        assert {"config.toml", "rounds.jsonl", "clients.jsonl", "plans", "summary.json", "model.safetensors"} <= names
        assert {f"{task.plan}.json" for task in whole.clients} <= {p.name for p in (whole.folder / "plans").iterdir()}

    def test_the_stored_configuration_is_a_recipe(self, whole: RunResult, tmp_path: Path) -> None:
        fh.run(whole.folder / "config.toml", out=tmp_path / "again", overrides={"rounds": 2})
        assert rounds_of(fh.load_run(tmp_path / "again")) == rounds_of(whole)[:2]

    def test_rounds_add_up(self, whole: RunResult) -> None:
        assert [r.round for r in whole.rounds] == list(range(5))
        for record in whole.rounds:
            tasks = [task for task in whole.clients if task.round == record.round]
            assert sorted(task.client for task in tasks) == record.cohort
            assert record.completed + record.failed == len(tasks)
        starts = [0.0, *(r.virtual_time_s for r in whole.rounds)]
        for start, end, record in zip(starts, starts[1:], whole.rounds, strict=False):
            slowest = max(task.virtual_time_s for task in whole.clients if task.round == record.round)
            assert end - start == pytest.approx(slowest)

    def test_summary(self, whole: RunResult) -> None:
        summary = whole.summary
        assert summary is not None
        assert summary == Summary(**json.loads((whole.folder / "summary.json").read_text()))
        assert (summary.rounds, summary.clients, summary.budget_violations) == (5, 24, 0)
        assert summary.final_accuracy == whole.rounds[-1].accuracy
        assert summary.virtual_time_s == whole.rounds[-1].virtual_time_s
        assert list(summary.participation) == ["weak", "strong"]
        for tier, counts in summary.participation.items():
            tasks = [task for task in whole.clients if task.tier == tier]
            reached = len({task.client for task in tasks})
            assert counts == {"clients": 12, "reached": reached, "tasks": len(tasks), "failed": 0}
        for target, reached_s in summary.time_to_accuracy_s.items():
            first = next((r.virtual_time_s for r in whole.rounds if r.accuracy >= float(target)), None)
            assert reached_s == first
        assert 50 * 2**20 < summary.runtime_bytes < 8 * 2**30

    def test_progress_hears_of_everything(self, whole: RunResult, heard: _Listener) -> None:
        assert heard.starts == [("", 0, 5)]
        assert heard.rounds == list(whole.rounds)
        assert heard.tasks == list(whole.clients)
        assert heard.ends == [whole.summary]


class TestAgain:
    def test_same_recipe_and_seed_give_the_same_run(self, whole: RunResult, tmp_path: Path) -> None:
        fh.run(recipe(rounds=5), out=tmp_path / "run")
        assert_same_run(whole.folder, tmp_path / "run")

    def test_another_seed_gives_another_run(self, whole: RunResult, tmp_path: Path) -> None:
        other = fh.run(recipe(rounds=1, seed=6), out=tmp_path / "run")
        assert other.rounds[0].accuracy != whole.rounds[0].accuracy or other.rounds[0].cohort != whole.rounds[0].cohort

    def test_more_rounds_can_be_asked_for_later(self, whole: RunResult, tmp_path: Path) -> None:
        fh.run(recipe(rounds=2), out=tmp_path / "run")
        longer = fh.run(recipe(rounds=5), out=tmp_path / "run", resume=True)
        assert_same_run(whole.folder, tmp_path / "run")
        assert longer.summary is not None
        assert longer.summary.rounds == 5

    def test_a_finished_run_is_only_read(self, whole: RunResult) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*.*")}
        again = fh.run(recipe(rounds=5), out=whole.folder, resume=True)
        assert again == whole
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_a_run_is_not_overwritten(self, whole: RunResult) -> None:
        with pytest.raises(ConfigError, match="finished run already"):
            fh.run(recipe(rounds=5), out=whole.folder)

    def test_variants_do_not_depend_on_the_number_of_processes(self, two_variants: Path, tmp_path: Path) -> None:
        heard = _Listener()
        result = fh.run(recipe(rounds=1, compare=VARIANTS), out=tmp_path / "two", processes=2, progress=heard)
        assert sorted(label for label, *_ in heard.starts) == ["ours", "theirs"]
        assert sorted(map(str, heard.rounds)) == sorted(str(r) for v in result.variants.values() for r in v.rounds)
        for label in ("ours", "theirs"):
            assert_same_run(two_variants / label, tmp_path / "two" / label)
        assert result.summaries.keys() == {"ours", "theirs"}


class TestErrorsInVariants:
    """What goes wrong in a variant's process is the same error as in this one."""

    def test_step_that_cannot_be_captured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "branching_net.py").write_text(_BRANCHING)
        monkeypatch.syspath_prepend(str(tmp_path))
        raw = recipe(model="branching_net:Net", model_options={}, compare=VARIANTS)
        said = []
        for processes in (1, 2):
            with pytest.raises(CaptureError) as caught:
                fh.run(raw, out=tmp_path / str(processes), processes=processes)
            said.append(str(caught.value))
        assert said[0] == said[1]

    def test_plan_of_another_graph(self, two_variants: Path, tmp_path: Path) -> None:
        raw, out = recipe(rounds=1, compare=VARIANTS), tmp_path / "run"
        shutil.copytree(two_variants, out)
        path = out / "ours/plans/laptop-smallest.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps(stored | {"fingerprint": "f" * len(stored["fingerprint"])}))
        for processes in (1, 2):
            with pytest.raises(ConfigError, match="was made for graph ffff"):
                fh.run(raw, out=out, overrides={"rounds": 2}, resume=True, processes=processes)
            assert (out / "ours/summary.json").is_file()


class TestDiverged:
    def test_tasks_that_ran_are_measured_and_sent(self, tmp_path: Path) -> None:
        result = fh.run(recipe(rounds=1), out=tmp_path / "run", overrides={"train.lr": 1e30})
        assert {task.outcome for task in result.clients} == {"non_finite"}
        for task in result.clients:
            assert task.steps > 0
            assert task.planned_peak_bytes is not None
            assert task.measured_peak_bytes is not None
            assert task.measured_peak_bytes <= task.budget_bytes
        assert result.rounds[0].bytes_up == result.rounds[0].bytes_down > 0


def test_damaged_model_of_a_finished_run_is_written_again(whole: RunResult, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    (out / "model.safetensors").write_bytes(b"half")
    fh.run(recipe(rounds=5), out=out, resume=True)
    assert_same_run(whole.folder, out)


class TestKilled:
    def test_goes_on_as_if_nothing_had_happened(self, whole: RunResult, tmp_path: Path) -> None:
        out = tmp_path / "run"
        raw = recipe(rounds=5, checkpoint_every=1)
        _killed(raw, out, after_rounds=2, watched=out)
        assert not (out / "summary.json").exists()
        plans = {path: path.stat().st_mtime_ns for path in (out / "plans").iterdir()}
        heard = _Listener()
        fh.run(raw, out=out, resume=True, progress=heard)
        ((_, first_round, _),) = heard.starts
        assert first_round >= 1  # the last record may have come after the last checkpoint
        assert_same_run(whole.folder, out)
        assert {path: path.stat().st_mtime_ns for path in plans} == plans  # read, not solved again

    @pytest.mark.slow
    def test_so_do_variants_in_processes_of_their_own(self, tmp_path: Path) -> None:
        raw, out = recipe(rounds=4, compare=VARIANTS), tmp_path / "run"
        _killed(raw, out, after_rounds=1, watched=out / "ours")
        fh.run(raw, out=out, resume=True, processes=1)
        fh.run(raw, out=tmp_path / "whole", processes=1)
        for label in ("ours", "theirs"):
            assert_same_run(tmp_path / "whole" / label, out / label)


class _Listener:
    """Keeps all that a run tells."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, int, int]] = []
        self.tasks: list[ClientRecord] = []
        self.rounds: list[RoundRecord] = []
        self.ends: list[Summary] = []

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        self.starts.append((label, first_round, rounds))

    def on_stage(self, label: str, stage: str) -> None:
        assert stage

    def on_task(self, label: str, record: ClientRecord) -> None:
        self.tasks.append(record)

    def on_round(self, label: str, record: RoundRecord) -> None:
        self.rounds.append(record)

    def on_end(self, label: str, summary: Summary) -> None:
        self.ends.append(summary)


def _killed(raw: dict[str, Any], out: Path, *, after_rounds: int, watched: Path) -> None:
    """Runs in another process and kills it with SIGKILL as soon as some rounds are stored."""
    code = f"import json, fedhybrid as fh; fh.run(json.loads({json.dumps(raw)!r}), out={str(out)!r}, processes=2)"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 120
        while _lines(watched / "rounds.jsonl") < after_rounds:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run does not get anywhere"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
