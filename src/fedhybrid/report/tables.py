"""The page's tables, as text that is ready to be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedhybrid.records import ClientRecord, Summary
from fedhybrid.report.facts import (
    accuracy_targets,
    closest_tasks,
    failed_tasks,
    largest_gap,
    measured_tasks,
    tier_order,
    tiers_of,
    time_to_accuracy_s,
    violations,
)
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.sentences import final_accuracy, reached_text
from fedhybrid.report.text import duration, mib, percent

__all__ = ["Table", "configs", "differences_table", "failures_table", "memory_table", "plans_table", "summary_table"]

_NONE = "\u2013"
_LISTED_FAILURES = 50
_LISTED_TARGETS = 5


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column heads and rows of cells. `left` columns hold words, the others numbers; `note` stands below."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    note: str = ""


def summary_table(runs: Runs) -> Table:
    """One column a run, one row a quantity; rows that no run can fill are left out."""
    rows: list[tuple[str, ...]] = []

    def row(name: str, show: Callable[[RunRecords], str]) -> None:
        cells = [show(run) for run in runs.values()]
        if any(cell != _NONE for cell in cells):
            rows.append((name, *cells))

    def row_of_summary(name: str, show: Callable[[Summary], str]) -> None:
        row(name, lambda run: show(run.summary) if run.summary else _NONE)

    row_of_summary("Method", lambda s: s.method)
    row_of_summary("Selection policy", lambda s: s.policy)
    row("Final test accuracy", lambda run: _or_none(final_accuracy(run), percent) + _so_far(run))
    row("Best test accuracy", lambda run: percent(max(r.accuracy for r in run.rounds)) if run.rounds else _NONE)
    row("Rounds", lambda run: f"{len(run.rounds):,}{_so_far(run)}")
    for target in accuracy_targets(runs)[-_LISTED_TARGETS:]:
        row(f"Virtual time to {percent(target, 0)}", partial(_time_to, target))
    row("Virtual time in all", lambda run: duration(run.rounds[-1].virtual_time_s) if run.rounds else _NONE)
    row("Devices reached", reached_text)
    row("Tasks completed", lambda run: f"{len(run.clients) - len(failed_tasks(run)):,}")
    row("Tasks failed", lambda run: f"{len(failed_tasks(run)):,}")
    row("Tasks measured above budget", lambda run: f"{len(violations(run)):,} of {len(measured_tasks(run)):,}")
    row("Largest |planned \u2212 measured| peak", _gap_text)
    row_of_summary("Step's peak in PyTorch eager", lambda s: mib(s.eager_peak_bytes))
    row_of_summary("of which resident", lambda s: mib(s.resident_bytes))
    row_of_summary("Interpreter and libraries (not in the budget)", lambda s: mib(s.runtime_bytes))
    row("Sent by devices", lambda run: _traffic(run, "bytes_up"))
    row("Sent to devices", lambda run: _traffic(run, "bytes_down"))
    row_of_summary("Real time on this machine", lambda s: duration(s.wall_time_s))
    return Table(heads=("", *runs), rows=tuple(rows))


def _or_none(value: float | None, show: Callable[[float], str]) -> str:
    return _NONE if value is None else show(value)


def _time_to(target_ratio: float, run: RunRecords) -> str:
    return _or_none(time_to_accuracy_s(run, target_ratio), duration)


def _so_far(run: RunRecords) -> str:
    return "" if run.summary else " so far"


def _gap_text(run: RunRecords) -> str:
    gap = largest_gap(run)
    return f"{mib(gap.gap_bytes, 2)} ({percent(gap.gap_ratio, 2)})" if gap else _NONE


def _traffic(run: RunRecords, field: str) -> str:
    return mib(getattr(run.summary, field)) if run.summary else _NONE


def differences_table(runs: Runs) -> Table | None:
    """Settings in which the runs differ; None for one run, or where all are equal."""
    flat = {label: _flatten(run.config) for label, run in runs.items()}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings if not key.startswith("compare"))
    rows = []
    for key in keys:
        cells = [_shown(settings[key]) if key in settings else _NONE for settings in flat.values()]
        if len(set(cells)) > 1:
            rows.append((key, *cells))
    return Table(heads=("setting", *runs), rows=tuple(rows), left=len(runs) + 1) if rows else None


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def memory_table(runs: Runs) -> Table | None:
    """Budget, planned and measured peak by tier: of each tier, the task that came closest to its budget."""
    rows = []
    for label, run in runs.items():
        closest, facts = closest_tasks(run), tiers_of(run)
        for tier in tier_order(runs):
            if tier not in facts:
                continue
            tasks = [t for t in closest.values() if t.tier == tier and t.measured_peak_bytes is not None]
            worst = max(tasks, key=lambda t: (t.measured_peak_bytes or 0) / t.budget_bytes, default=None)
            all_tasks = [t for t in measured_tasks(run) if t.tier == tier]
            rows.append(
                (
                    label,
                    tier,
                    ", ".join(sorted({t.device for t in run.clients if t.tier == tier})) or _NONE,
                    _or_none(worst.budget_bytes if worst else facts[tier].budget_bytes, mib),
                    *(
                        (_or_none(worst.planned_peak_bytes, mib), _or_none(worst.measured_peak_bytes, mib))
                        if worst
                        else (_NONE, _NONE)
                    ),
                    percent((worst.measured_peak_bytes or 0) / worst.budget_bytes, 2) if worst else _NONE,
                    f"{len(all_tasks):,}",
                )
            )
    heads = ("run", "tier", "device", "budget", "planned peak", "measured peak", "of budget", "tasks measured")
    note = "Of each tier, the task whose measured peak came closest to its budget."
    return Table(heads=heads, rows=tuple(rows), left=3, note=note) if rows else None


def plans_table(runs: Runs) -> Table | None:
    """Every plan of every run, the tightest first."""
    rows = []
    for label, run in runs.items():
        for name, plan in sorted(run.plans.items(), key=lambda item: item[1].get("peak_bytes", 0)):
            tasks = [task for task in run.clients if task.plan == name]
            measured = [t.measured_peak_bytes for t in tasks if t.measured_peak_bytes is not None]
            rows.append(
                (
                    label,
                    name,
                    str(plan.get("solver", _NONE)),
                    _or_none(min((task.budget_bytes for task in tasks), default=None), mib),
                    _or_none(plan.get("peak_bytes"), mib),
                    _or_none(max(measured, default=None), mib),
                    _or_none(plan.get("eager_peak_bytes"), mib),
                    _extra(plan),
                    f"{len(tasks):,}",
                )
            )
    heads = (
        "run",
        "plan",
        "solver",
        "budget",
        "planned peak",
        "measured peak",
        "peak in PyTorch eager",
        "extra time (planned)",
        "tasks",
    )
    return Table(heads=heads, rows=tuple(rows), left=3) if rows else None


def _extra(plan: dict[str, Any]) -> str:
    step_s, extra_s = plan.get("step_time_s"), plan.get("extra_time_s")
    if not step_s or extra_s is None or step_s <= extra_s:
        return _NONE
    return "+" + percent(extra_s / (step_s - extra_s))


def failures_table(runs: Runs) -> Table | None:
    """Tasks that failed, by run, tier and reason, the most frequent first."""
    groups: dict[tuple[str, str, str], list[ClientRecord]] = {}
    for label, run in runs.items():
        for task in failed_tasks(run):
            groups.setdefault((label, task.tier, task.outcome), []).append(task)
    if not groups:
        return None
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows = [
        (
            label,
            tier,
            outcome.replace("_", " "),
            tasks[0].detail or _NONE,
            f"{len(tasks):,}",
            f"{len({task.client for task in tasks}):,}",
            f"{tasks[0].round}",
        )
        for (label, tier, outcome), tasks in ordered[:_LISTED_FAILURES]
    ]
    left_out = len(ordered) - len(rows)
    note = f"{left_out} rarer kinds of failure are left out; clients.jsonl has every task." if left_out else ""
    heads = ("run", "tier", "why", "detail of the first", "tasks", "devices", "first in round")
    return Table(heads=heads, rows=tuple(rows), left=4, note=note)


def configs(runs: Runs) -> list[tuple[str, str]]:
    """Each run's label and its `config.toml` as it stands; runs without one are left out."""
    paths = {label: run.folder / "config.toml" for label, run in runs.items()}
    return [(label, path.read_text()) for label, path in paths.items() if path.is_file()]
