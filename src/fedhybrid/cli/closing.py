"""What `fedhybrid run` ends with: one row a run, and a line for what rows have no room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from fedhybrid.units import format_seconds

if TYPE_CHECKING:  # the records bring torch, which --help should not wait for
    from fedhybrid.records import Summary

__all__ = ["closing_lines", "closing_table"]


def closing_table(summaries: Mapping[str, Summary]) -> Table:
    """Columns that no run can fill, or that are zero for all of them where zero is what is expected, are left out."""
    columns = {
        "run": [label or summary.method for label, summary in summaries.items()],
        "accuracy": [f"{summary.final_accuracy:.3f}" for summary in summaries.values()],
        "best": [f"{summary.best_accuracy:.3f}" for summary in summaries.values()],
        "worst\ntenth": [_ratio(summary.worst_tenth_accuracy) for summary in summaries.values()],
        _clock(summaries): [format_seconds(summary.virtual_time_s) for summary in summaries.values()],
        "real\ntime": [format_seconds(summary.wall_time_s) for summary in summaries.values()],
        "reached": [_reached(summary) for summary in summaries.values()],
        "tasks\nfailed": [f"{sum(summary.failures.values()):,}" for summary in summaries.values()],
        "over\nbudget": [f"{summary.budget_violations:,}" for summary in summaries.values()],
    }
    optional = {"worst\ntenth": "", "tasks\nfailed": "0"}
    shown = {name: cells for name, cells in columns.items() if name not in optional or set(cells) != {optional[name]}}
    table = Table(box=None, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="left" if name == "run" else "right", vertical="bottom")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table


def closing_lines(summaries: Mapping[str, Summary]) -> list[str]:
    """One line for each run that was asynchronous, lost tasks because they were late, or ran short of memory."""
    found = []
    for label, summary in summaries.items():
        parts = []
        if summary.schedule.endswith("asynchronous"):
            parts.append(f"{summary.schedule}, {summary.rounds:,} aggregations")
            if summary.staleness_mean is not None:
                parts.append(f"mean staleness {summary.staleness_mean:.1f}")
        if late := summary.failures.get("late", 0):
            parts.append(f"{late:,} of the failed tasks came late")
        if summary.violations:
            parts.append(f"a device had too little memory for {summary.violations:,} steps")
        if parts:
            found.append(f"{label or summary.method}: {', '.join(parts)}")
    return found


def _clock(summaries: Mapping[str, Summary]) -> str:
    return "time" if {summary.clock for summary in summaries.values()} == {"real"} else "virtual\ntime"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _reached(summary: Summary) -> str:
    return f"{sum(tier['reached'] for tier in summary.participation.values()):,} of {summary.clients:,}"
