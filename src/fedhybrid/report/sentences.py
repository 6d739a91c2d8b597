"""What the page says in words before it shows anything: the headline, four key facts, and what to beware of."""

from __future__ import annotations

from dataclasses import dataclass

from fedhybrid.report.facts import (
    accuracy_curve,
    accuracy_targets,
    clock_words,
    fleet_size,
    solver_of,
    stand_in_tiers,
    step_bytes,
    tiers_of,
    tightest_plan,
    time_to_accuracy_s,
)
from fedhybrid.report.load import RunRecords, Runs
from fedhybrid.report.tasks import (
    clients_reached,
    failure_counts,
    is_asynchronous,
    largest_gap,
    measured_tasks,
    training_tasks,
    violations,
    words,
)
from fedhybrid.report.text import duration, mib, percent

__all__ = ["KeyFact", "final_accuracy", "headline", "key_facts", "notices", "reached_text", "subject"]


# What to say of a run, by the name that the summary (and mostly the configuration) has for it.
_SUBJECT = {
    "dataset": "{}", "model": "{}", "method": "method {}", "policy": "policy {}", "seed": "seed {}",
    "rounds": "{} rounds", "clients": "{} devices",
}  # fmt: skip


_NAMED_RUNS = 3  # more runs than these would make a headline that nobody reads


def final_accuracy(run: RunRecords) -> float | None:
    """Test accuracy at the end, or so far; None before the first test."""
    if run.summary:
        return run.summary.final_accuracy
    tests = accuracy_curve(run)
    return tests[-1].accuracy if tests else None


def reached_text(run: RunRecords) -> str:
    """'6 of 30' devices that completed a task; the fleet's size is left out where no summary tells it."""
    fleet = fleet_size(run)
    return f"{clients_reached(run):,}" + (f" of {fleet:,}" if fleet else "")


def headline(runs: Runs) -> str:
    """One sentence: what each run reached and with whom, the best first; of many runs the best and the spread."""
    ranked = sorted(runs, key=lambda label: -(final_accuracy(runs[label]) or 0.0))
    parts = []
    for label in ranked[: 1 if len(runs) > _NAMED_RUNS else None]:
        accuracy = final_accuracy(runs[label])
        if accuracy is None:
            missing = "been tested yet" if runs[label].rounds else "completed a round"
            parts.append(f"{label} has not {missing}")
        else:
            verb = "reached" if runs[label].summary else "is at"
            opening = "" if parts else " test accuracy"
            parts.append(f"{label} {verb} {percent(accuracy)}{opening} with {reached_text(runs[label])} devices")
    others = [a for label in ranked[1:] if (a := final_accuracy(runs[label])) is not None]
    if len(runs) > _NAMED_RUNS and others:
        parts.append(f"the other {len(runs) - 1} runs reached {percent(min(others))} to {percent(max(others))}")
    return "; ".join(parts) + "."


def subject(runs: Runs) -> str:
    """What was trained, in one line: what the runs have in common."""
    summaries = [run.summary for run in runs.values() if run.summary]
    parts = []
    for name, pattern in _SUBJECT.items():
        values = {getattr(summary, name) for summary in summaries} or {
            run.config[name] for run in runs.values() if name in run.config
        }
        if len(values) == 1:
            parts.append(pattern.format(values.pop()))
    return " · ".join(parts)


@dataclass(frozen=True, kw_only=True)
class KeyFact:
    """One large number with its name and what stands behind it."""

    value: str
    name: str
    detail: str


def key_facts(runs: Runs) -> list[KeyFact]:
    """What one wants to know first; a fact that the records do not tell yet is left out."""
    return [fact for fact in (_over_budget(runs), _gap(runs), _tightest(runs), _soonest(runs)) if fact]


def _over_budget(runs: Runs) -> KeyFact | None:
    tasks = sum(len(measured_tasks(run)) for run in runs.values())
    over = sum(len(violations(run)) for run in runs.values())
    detail = "tasks whose measured peak is above the device's budget"
    return KeyFact(value=f"{over:,} of {tasks:,}", name="over budget", detail=detail) if tasks else None


def _gap(runs: Runs) -> KeyFact | None:
    gaps = [gap for run in runs.values() if (gap := largest_gap(run))]
    if not gaps:
        return None
    worst = max(gaps, key=lambda gap: gap.gap_ratio)
    detail = (
        f"planned against measured peak, worst of all tasks: planned {mib(worst.task.planned_peak_bytes or 0, 2)}, "
        f"measured {mib(worst.task.measured_peak_bytes or 0, 2)} (round {worst.task.round}, device {worst.task.client})"
    )
    return KeyFact(value=percent(worst.gap_ratio, 2), name="largest planning error", detail=detail)


def _tightest(runs: Runs) -> KeyFact | None:
    tight = tightest_plan(runs)
    if tight is None:
        return None
    peak, eager = tight.plan["peak_bytes"], tight.plan["eager_peak_bytes"]
    measured = "" if tight.measured_peak_bytes is None else f", measured {mib(tight.measured_peak_bytes)}"
    return KeyFact(
        value=percent(peak / eager, 0),
        name="of PyTorch's peak",
        detail=f"the tightest plan: planned {mib(peak)}{measured}, PyTorch eager {mib(eager)}",
    )


def _soonest(runs: Runs) -> KeyFact | None:
    targets = accuracy_targets(runs)
    if not targets:
        return None
    times = {label: time_to_accuracy_s(run, targets[-1]) for label, run in runs.items()}
    met = sorted((time_s, label) for label, time_s in times.items() if time_s is not None)
    each = [f"{label} {duration(time_s)}" for time_s, label in met]
    each += [f"{label} never" for label, time_s in times.items() if time_s is None]
    clock = clock_words(runs)
    if len(runs) == 1:
        detail = clock
    elif len(runs) <= _NAMED_RUNS:
        detail = f"{clock}: {', '.join(each)}"
    else:
        detail = f"{clock}, by {met[0][1]}; {len(met)} of {len(runs)} runs met it"
    return KeyFact(value=duration(met[0][0]), name=f"until {percent(targets[-1], 0)} accuracy", detail=detail)


def notices(runs: Runs) -> list[str]:
    """What a reader must know before trusting the numbers: unfinished runs, and records that contradict each other."""
    found = []
    for label, run in runs.items():
        over = len(violations(run))
        if run.summary is None:
            asked = f" of {run.config['rounds']}" if "rounds" in run.config else ""
            unit = "aggregations" if is_asynchronous(run) else "rounds"
            found.append(f"{label} is unfinished: {len(run.rounds)}{asked} {unit} are done. Its numbers are so far.")
        elif run.summary.budget_violations != over:
            found.append(
                f"{label}: summary.json says {run.summary.budget_violations} budget violations, the tasks in "
                f"clients.jsonl show {over}."
            )
        if run.rounds and not clients_reached(run):
            found.append(f"{label}: {_why_untrained(run)}, so the model is as it was before training.")
        if over:
            found.append(f"{label}: {over} tasks measured a peak above their device's budget.")
        if tiers := stand_in_tiers(run):
            found.append(
                f"{label}: {solver_of(run)} found no plan within the budget of {', '.join(tiers)}; plans of the solver "
                "\u201cauto\u201d without loss stood in there."
            )
    return found


def _why_untrained(run: RunRecords) -> str:
    """Nobody took part, or every task failed."""
    if tasks := training_tasks(run):
        reasons = ", ".join(f"{count:,} {words(kind)}" for kind, count in failure_counts(run).most_common())
        first = next((task.detail for task in tasks if task.detail), "")
        promise = ""
        if _budgets_move(run) and any(task.outcome == "out_of_memory" and not task.steps for task in tasks):
            largest = max(task.budget_bytes for task in tasks)
            promise = f"; devices promise what other apps leave of their budgets, {mib(largest, 2)} at most"
        return f"all {len(tasks):,} tasks failed ({reasons}{'; the first: ' + first if first else ''}{promise})"
    if _budgets_move(run):
        return f"no device took part, as no device promised enough memory for a training step{_figures(run)}"
    return f"no device took part, as no budget holds a training step{_figures(run)}"


def _budgets_move(run: RunRecords) -> bool:
    return "memory" in run.config.get("fleet", {})


def _figures(run: RunRecords) -> str:
    """The largest promise or, where no task tells one, the largest budget, beside what a step needs."""
    step = step_bytes(run)
    budgets = [tier.budget_bytes for tier in tiers_of(run).values() if tier.budget_bytes is not None]
    promises = [task.budget_bytes for task in run.clients] if _budgets_move(run) else []
    if step is None or not budgets:
        return ""
    largest = f"budget is {mib(max(budgets), 2)}"
    if promises:
        largest = f"promise was {mib(max(promises), 2)}"
    elif _budgets_move(run):
        largest += ", of which other apps take a part"
    return f" (the largest {largest}; PyTorch's own step needs {mib(step[1], 2)})"
