"""What `fedhybrid compare` says on the way: runs that end, go on, or were complete before."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile

import pytest
from rich.console import Console
from tests.unit.report_runs import write_run

from fedhybrid.cli.many import ManyBars, ManyLines
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import parallel
from fedhybrid.experiment.comparing import failures_as_one
from fedhybrid.report import RunRecords, load_records


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    return load_records(write_run(tmp_path_factory.mktemp("progress") / "run", rounds=4, tested_every=3))


def told(run: RunRecords, progress: type[ManyBars | ManyLines], *, terminal: bool) -> str:
    """Three runs: one complete before, one that goes on after two rounds, one that begins."""
    out = io.StringIO()
    assert run.summary is not None
    with progress(Console(file=out, force_terminal=terminal, width=160), 3) as watcher:
        watcher.on_start("before", first_round=4, rounds=4)
        watcher.on_end("before", run.summary)
        for label, first in (("going on", 2), ("new", 0)):
            watcher.on_start(label, first_round=first, rounds=4)
            watcher.on_stage(label, "planning for each device")
            for record in run.rounds[first:]:
                watcher.on_round(label, record)
            watcher.on_end(label, run.summary)
    return out.getvalue()


def test_a_log_has_a_line_for_each_run(run: RunRecords) -> None:
    assert run.summary is not None
    lines = told(run, ManyLines, terminal=False).splitlines()
    assert lines[:2] == ["1/3 runs were complete already", "going on: goes on after round 2/4"]
    accuracy = f"accuracy {run.summary.final_accuracy:.3f}"
    assert [line.split(", clock")[0] for line in lines[2:]] == [f"2/3 going on: {accuracy}", f"3/3 new: {accuracy}"]


def test_a_terminal_ends_with_the_bar_of_all_runs(run: RunRecords) -> None:
    shown = [line for line in told(run, ManyBars, terminal=True).splitlines() if "runs" in line]
    assert "3/3" in shown[-1]


@pytest.mark.parametrize("progress", [ManyLines, ManyBars])
def test_a_failure_is_told_at_once(progress: type[ManyBars | ManyLines]) -> None:
    out = io.StringIO()
    with progress(Console(file=out, width=160), 2) as watcher:
        watcher.on_start("r, seed 1: a", first_round=0, rounds=4)
        watcher.on_failure("r, seed 1: a", ConfigError("r, seed 1: a: no such data\nmore"))
        watcher.on_failure("r, seed 1: b", RuntimeError("variant 'r, seed 1: b' ended with exit code -9 (killed)"))
        lines = [line.strip() for line in out.getvalue().splitlines() if "FAILED" in line]
    assert lines == [
        "FAILED r, seed 1: a: no such data; the other runs go on",
        "FAILED r, seed 1: b: ended with exit code -9 (killed); the other runs go on",
    ]


def test_no_label_stands_twice() -> None:
    ended = RuntimeError("variant 'r, seed 1: b' ended with exit code -9 (killed; often too little memory)")
    found = failures_as_one({"r, seed 1: b": ended, "r, seed 1: a": ConfigError("r, seed 1: a: no data")})
    assert str(found).count("r, seed 1: a") == str(found).count("r, seed 1: b") == 1


def test_who_was_killed_may_have_lacked_memory() -> None:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        problem = parallel._end_problem(parallel._Worker(process=process, errors=errors, label="a"))
    assert str(problem) == "variant 'a' ended with exit code -9 (killed; often too little memory)"
