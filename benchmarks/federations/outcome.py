"""What a set of runs of all contenders comes to: rows of medians and ranges, as markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["command_rows", "command_table", "paired_table"]

Range = tuple[float, float, float]  # median, smallest, largest


def command_rows(runs: Mapping[str, Sequence[Mapping[str, Any]]], reference: str) -> list[dict[str, Any]]:
    """One row a contender; `runs` has its repetitions, in the order in which they took turns.

    `start_up_s` is from the process's start to the end of the first round, less a round; `rounds_per_s` leaves the
    first round out; `command_over_reference` compares whole commands of the same turn with those of `reference`.
    """
    rows = []
    for name, repeats in runs.items():
        round_s = [statistics.fmean(run["round_s"]) for run in repeats]
        start_s = [run["first_round_end_s"] - each for run, each in zip(repeats, round_s, strict=True)]
        cores = repeats[0]["cores"]
        row: dict[str, Any] = {"contender": name, "cores": cores, "repeats": len(repeats)}
        row["command_s"] = _range(run["command_s"] for run in repeats)
        row["start_up_s"] = _range(start_s)
        row["rounds_per_s"] = _range(1 / each for each in round_s)
        row["rounds_per_s_and_core"] = _range(1 / each / cores for each in round_s)
        row["cpu_s"] = _range(run["cpu_s"] for run in repeats)
        row["accuracy"] = _range(run["accuracy"] for run in repeats)
        if reference in runs:
            pairs = zip(repeats, runs[reference], strict=True)
            row["command_over_reference"] = _range(run["command_s"] / other["command_s"] for run, other in pairs)
        rows.append(row)
    return rows


def _range(values: Iterable[float]) -> Range:
    found = list(values)
    return statistics.median(found), min(found), max(found)


def command_table(rows: Sequence[Mapping[str, Any]], reference: str) -> str:
    """Medians, and in brackets the smallest and the largest."""
    columns = {
        "command s": ("command_s", "{:.1f}"),
        "start-up s": ("start_up_s", "{:.1f}"),
        "rounds/s": ("rounds_per_s", "{:.1f}"),
        "rounds/s a core": ("rounds_per_s_and_core", "{:.1f}"),
        "CPU s": ("cpu_s", "{:.1f}"),
        "accuracy": ("accuracy", "{:.3f}"),
        f"command / {reference}": ("command_over_reference", "{:.2f}"),
    }
    shown = {head: column for head, column in columns.items() if all(column[0] in row for row in rows)}
    lines = [
        [row["contender"], str(row["cores"]), *(_words(row[key], form) for key, form in shown.values())] for row in rows
    ]
    return _markdown(["contender", "cores", *shown], lines)


def _words(found: Range, form: str) -> str:
    median, low, high = (form.format(value) for value in found)
    return median if low == high else f"{median} [{low}-{high}]"


def paired_table(results: Sequence[Mapping[str, Any]]) -> str:
    """One line a run of `paired.py`; quartiles of the paired differences and ratios in brackets."""
    lines = []
    for run in results:
        low, high = run["difference_quartiles_ms"]
        least, most = run["ratio_quartiles"]
        lines.append(
            [run["job"], run["contender"], f"{run['ms_a_task']:.3f}", f"{run['bare_ms_a_task']:.3f}",
             f"{run['difference_ms']:+.3f} [{low:+.3f} to {high:+.3f}]", f"{run['ratio']:.3f} [{least:.3f}-{most:.3f}]"]
        )  # fmt: skip
    head = ["job", "contender", "ms a task", "bare loop's", "difference, paired", "ratio, paired"]
    return _markdown(head, lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))
