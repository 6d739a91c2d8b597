"""What `fedhybrid run` says on the way and at the end: untested rounds, failures, schedules."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.unit.report_merges import write_merges
from tests.unit.report_runs import write_run

from fedhybrid.cli.closing import closing_lines, closing_table
from fedhybrid.cli.progress import Bars, Lines
from fedhybrid.records import Summary
from fedhybrid.report import RunRecords, load_records


def told(run: RunRecords, progress: type[Bars | Lines], *, terminal: bool) -> str:
    out = io.StringIO()
    assert run.summary is not None
    with progress(Console(file=out, force_terminal=terminal, width=160)) as watcher:
        watcher.on_start("a", first_round=0, rounds=run.summary.rounds)
        for record in run.rounds:
            watcher.on_round("a", record)
        watcher.on_end("a", run.summary)
    return out.getvalue()


def table_text(summaries: dict[str, Summary], width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(closing_table(summaries))
    return out.getvalue()


def summary_of(folder: Path) -> Summary:
    summary = load_records(folder).summary
    assert summary is not None
    return summary


@pytest.mark.parametrize("progress", [Bars, Lines])
def test_an_untested_round_shows_the_last_test(tmp_path: Path, progress: type[Bars | Lines]) -> None:
    run = load_records(write_run(tmp_path / "run", rounds=4, tested_every=3, failing=1.0))
    text = told(run, progress, terminal=progress is Bars)
    assert run.summary is not None
    assert f"accuracy {run.summary.final_accuracy:.3f}" in text
    assert "32 tasks failed" in text
    if progress is Lines:
        first, second, third, _ = text.splitlines()
        assert "round 1/4, accuracy not tested yet" in first
        assert "accuracy not tested yet, clock" in second
        assert f"accuracy {run.rounds[2].accuracy:.3f}" in third


def test_the_closing_table_fits_a_terminal_and_leaves_out_what_is_zero(tmp_path: Path) -> None:
    calm = summary_of(write_run(tmp_path / "calm", rounds=3, failing=0.0))
    text = table_text({"synchronous": calm})
    assert len(text.splitlines()) == 3  # two of heads, one of figures: nothing is broken
    assert f"{calm.worst_tenth_accuracy:.3f}" in text
    assert "failed" not in text
    assert "worst" not in table_text({"old": dataclasses.replace(calm, worst_tenth_accuracy=None)})
    failing = summary_of(write_run(tmp_path / "failing", rounds=3, failing=1.0))
    both = table_text({"calm": calm, "failing": failing})
    assert "failed" in both
    assert len(both.splitlines()) == 4
    assert both.splitlines()[-1].split()[-2:] == ["24", "0"]


def test_closing_lines_are_for_what_is_out_of_the_ordinary(tmp_path: Path) -> None:
    calm = summary_of(write_run(tmp_path / "calm", rounds=2, failing=0.0))
    merged = summary_of(write_merges(tmp_path / "merged", buffer=1))
    late = dataclasses.replace(calm, failures={"crash": 2, "late": 3})
    assert closing_lines({"calm": calm, "merged": merged, "late": late}) == [
        f"merged: asynchronous, 30 aggregations, mean staleness {merged.staleness_mean:.1f}, "
        f"a device had too little memory for {merged.violations} steps",
        "late: 3 of the failed tasks came late",
    ]
