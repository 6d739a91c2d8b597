"""The report's table of what each tier trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.unit.report_runs import write_run

from fedhybrid.records import ClientRecord, append_jsonl, read_jsonl
from fedhybrid.report.load import load_records
from fedhybrid.report.page import write_report
from fedhybrid.report.tables import submodels_table


def named(folder: Path, names: dict[str, str]) -> list[ClientRecord]:
    """Gives the tasks of each tier a submodel; "%" stands for the round's number."""
    path = folder / "clients.jsonl"
    tasks = [
        dataclasses.replace(task, submodel=names.get(task.tier, "").replace("%", str(task.round)))
        for task in read_jsonl(ClientRecord, path)
    ]
    path.unlink()
    append_jsonl(path, tasks)
    return tasks


def test_a_run_of_whole_models_has_no_such_table(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert submodels_table({"": load_records(tmp_path)}) is None


def test_tasks_are_counted_by_tier_and_submodel(tmp_path: Path) -> None:
    write_run(tmp_path)
    tasks = named(tmp_path, {"25%": "cut-2", "40%": "window.%"})
    table = submodels_table({"run": load_records(tmp_path)})
    assert table is not None
    counted = {(row[1], row[2]): int(row[3]) for row in table.rows}
    done = [task for task in tasks if task.outcome == "completed" and task.kind == "train"]
    assert counted["25%", "cut-2"] == sum(task.tier == "25%" for task in done)
    assert counted["100%", "the whole"] == sum(task.tier == "100%" for task in done)
    windows = {key: count for key, count in counted.items() if key[0] == "40%"}
    assert len(windows) == 7, "six of them, and all others in one row"
    assert sum(windows.values()) == sum(task.tier == "40%" for task in done)


def test_it_stands_on_the_page(tmp_path: Path) -> None:
    write_run(tmp_path)
    named(tmp_path, {"25%": "cut-2"})
    page = write_report(tmp_path).read_text()
    assert "What each tier trained" in page
    assert "cut-2" in page
