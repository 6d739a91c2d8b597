"""The page's first table: one column a run, what came out and what it took."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fedhybrid.records import RoundRecord, Summary
from fedhybrid.report.facts import accuracy_curve, accuracy_targets, clock_words, time_to_accuracy_s
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.sentences import final_accuracy, reached_text
from fedhybrid.report.tables.base import NONE, Table, or_none
from fedhybrid.report.tasks import (
    failed_tasks,
    is_asynchronous,
    largest_gap,
    measured_tasks,
    schedule_of,
    training_tasks,
    violations,
)
from fedhybrid.report.text import duration, energy, mib, percent

__all__ = ["summary_table"]

_LISTED_TARGETS = 5


def summary_table(runs: Runs) -> Table:
    """One column a run, one row a quantity; rows that no run can fill are left out."""
    rows: list[tuple[str, ...]] = []

    def row(name: str, show: Callable[[RunRecords], str]) -> None:
        cells = [show(run) for run in runs.values()]
        if any(cell != NONE for cell in cells):
            rows.append((name, *cells))

    def row_of_summary(name: str, show: Callable[[Summary], str]) -> None:
        row(name, lambda run: show(run.summary) if run.summary else NONE)

    overlapping = any(is_asynchronous(run) for run in runs.values())
    row_of_summary("Method", lambda s: s.method)
    row_of_summary("Selection policy", lambda s: s.policy)
    if overlapping:
        row("Schedule", schedule_of)
    row("Final test accuracy", lambda run: or_none(final_accuracy(run), percent) + _so_far(run))
    row("Best test accuracy", lambda run: or_none(_best_accuracy(run), percent))
    row_of_summary("Average incremental accuracy", lambda s: or_none(s.average_incremental_accuracy, percent))
    row_of_summary("Forgetting", lambda s: or_none(s.forgetting, percent))
    row_of_summary("Accuracy for the worst tenth of devices", lambda s: or_none(s.worst_tenth_accuracy, percent))
    row("Accuracy when devices last tested it themselves", lambda run: or_none(_on_devices(run), percent))
    row("Rounds or aggregations" if overlapping else "Rounds", lambda run: f"{len(run.rounds):,}{_so_far(run)}")
    clock = clock_words(runs).capitalize()
    for target in accuracy_targets(runs)[-_LISTED_TARGETS:]:
        row(f"{clock} to {percent(target, 0)}", partial(_time_to, target))
    row(f"{clock} in all", lambda run: duration(run.rounds[-1].virtual_time_s) if run.rounds else NONE)
    row("Devices reached", reached_text)
    row("Tasks completed", lambda run: f"{len(training_tasks(run)) - len(failed_tasks(run)):,}")
    row("Tasks failed", lambda run: f"{len(failed_tasks(run)):,}")
    if overlapping:
        row_of_summary("Mean staleness (aggregations)", lambda s: or_none(s.staleness_mean, "{:.2f}".format))
    row("Tasks measured above budget", lambda run: f"{len(violations(run)):,} of {len(measured_tasks(run)):,}")
    row("Largest |planned \u2212 measured| peak", _gap_text)
    row_of_summary("Step's peak in PyTorch eager", lambda s: mib(s.eager_peak_bytes))
    row_of_summary("of which resident", lambda s: mib(s.resident_bytes))
    row_of_summary("Interpreter and libraries (not in the budget)", lambda s: mib(s.runtime_bytes))
    row("Program on a device, between tasks", _program_text)
    row("Sent by devices", lambda run: _traffic(run, lambda r: r.bytes_up))
    row("Sent to devices", lambda run: _traffic(run, lambda r: r.bytes_down))
    row("Energy of all devices, above idle", lambda run: or_none(_energy_j(run), energy))
    row_of_summary("Real time on this machine", lambda s: duration(s.wall_time_s))
    return Table(heads=("", *runs), rows=tuple(rows))


def _best_accuracy(run: RunRecords) -> float | None:
    return max((test.accuracy for test in accuracy_curve(run)), default=None)


def _on_devices(run: RunRecords) -> float | None:
    return next((r.client_accuracy for r in reversed(run.rounds) if r.client_accuracy is not None), None)


def _time_to(target_ratio: float, run: RunRecords) -> str:
    return or_none(time_to_accuracy_s(run, target_ratio), duration)


def _so_far(run: RunRecords) -> str:
    return "" if run.summary else " so far"


def _gap_text(run: RunRecords) -> str:
    gap = largest_gap(run)
    return f"{mib(gap.gap_bytes, 2)} ({percent(gap.gap_ratio, 2)})" if gap else NONE


def _traffic(run: RunRecords, sent_bytes: Callable[[RoundRecord], int]) -> str:
    return mib(sum(map(sent_bytes, run.rounds))) if run.rounds else NONE


def _energy_j(run: RunRecords) -> float | None:
    """Of all rounds; None where some device's profile has no figures."""
    energies = [r.energy_j for r in run.rounds if r.energy_j is not None]
    return sum(energies) if energies and len(energies) == len(run.rounds) else None


def _program_text(run: RunRecords) -> str:
    """Memory of real devices' programs beside any training, as they have said."""
    said = [task.runtime_bytes for task in run.clients if task.runtime_bytes]
    return f"{mib(min(said))} to {mib(max(said))}" if said else NONE
