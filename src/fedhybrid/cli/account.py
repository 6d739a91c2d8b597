"""What `fedhybrid explain` says about a plan."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedhybrid.cli.output import print_json, results
from fedhybrid.cli.planview import draw_timeline
from fedhybrid.planner import Plan, TensorDecision
from fedhybrid.units import format_bytes, format_seconds

__all__ = ["account_object", "show_account", "timeline_rows"]

_LINES, _COLUMNS = 12, 76

Timeline = tuple[Sequence[int], int]  # bytes at each call, and where the backward pass starts


def show_account(plan: Plan, *, top: int, as_json: bool, out: Path | None) -> None:
    """Prints the account, and draws the timeline where `out` says."""
    if out is not None:
        draw_timeline(plan, plan.solver, out)
    if as_json:
        print_json(account_object(plan, top=top))
        return
    console = results()
    for line in _sentences(plan):
        console.print(line, markup=False, highlight=False)
    for table in (_totals(plan), _largest(plan, top), _splits(plan, top)):
        if table.row_count:
            console.print()
            console.print(table)
    _print_timeline(console, plan)


def account_object(plan: Plan, *, top: int) -> dict[str, Any]:
    """The account as a JSON object: the plan's own fields, totals by action, and the largest decisions."""
    answer = dataclasses.asdict(plan)
    for detail in ("timelines", "timeline_marks", "decisions", "splits"):
        answer.pop(detail, None)
    by_size = sorted(plan.decisions, key=lambda d: -d.nbytes)
    return answer | {
        "actions": {
            action: {"tensors": len(group), "bytes": sum(d.nbytes for d in group)}
            for action, group in _by_action(plan).items()
        },
        "largest": [dataclasses.asdict(decision) for decision in by_size[:top]],
        "splits": [dataclasses.asdict(split) for split in plan.splits],
        "over_eager_ratio": _share(plan.peak_bytes, plan),
    }


def timeline_rows(planned: Timeline, eager: Timeline, *, lines: int, columns: int) -> list[str]:
    """Two timelines as text, top line first: a full block up to the planned bytes, a light one above it up to eager's.

    The first half of the columns is the forward pass, the second the rest, so that both programs line up. Each column
    shows the worst moment of its part of the step; each line is the same number of bytes.

    >>> timeline_rows(([1, 2, 1], 2), ([2, 4, 4, 2], 2), lines=4, columns=4)
    [' ░░ ', ' ░░ ', '░█░░', '████']
    """
    high = max(*planned[0], *eager[0])
    tops = [[-(-top * lines // high) for top in _columns_of(timeline, columns)] for timeline in (planned, eager)]
    return [
        "".join("█" if p >= line else "░" if e >= line else " " for p, e in zip(*tops, strict=True))
        for line in range(lines, 0, -1)
    ]


def _columns_of(timeline: Timeline, columns: int) -> list[int]:
    """The largest number of each column's part; a part without any takes its neighbour's."""
    levels, backward_at = timeline
    found = []
    first = columns // 2 if 0 < backward_at < len(levels) else columns  # one pass alone takes all columns
    for half, count in ((levels[:backward_at] or levels, first), (levels[backward_at:], columns - first)):
        for column in range(count):
            start = min(column * len(half) // count, len(half) - 1)
            found.append(max(half[start : max(start + 1, (column + 1) * len(half) // count)], default=0))
    return found


def _sentences(plan: Plan) -> list[str]:
    budget = "without a budget" if plan.budget_bytes is None else f"for a budget of {format_bytes(plan.budget_bytes)}"
    gap_s = plan.extra_time_s - plan.bound_extra_time_s
    if plan.gradient_error:
        exactness = f"Gradients differ by about {plan.gradient_error:.2g} (relative), as predicted."
    elif plan.bit_identical:
        exactness = "Every bit is eager's."
    else:
        exactness = "Nothing is lost; some sums are taken in another order than eager's, because operators are split."
    return [
        f"A plan {budget}, by solver {plan.solver}, for graph {plan.fingerprint}, {plan.threads} thread(s).",
        f"Peak: {format_bytes(plan.peak_bytes)}, that is {_share(plan.peak_bytes, plan):.1%} of what eager needs above "
        f"the resident {format_bytes(plan.resident_bytes)} (eager {format_bytes(plan.eager_peak_bytes)}, captured "
        f"program without decisions {format_bytes(plan.keep_all_peak_bytes)}).",
        f"The peak is at {plan.peak_op}.",
        f"Time: {format_seconds(plan.extra_time_s)} extra of {format_seconds(plan.step_time_s)} a step, predicted; no "
        f"plan for this budget costs less than {format_seconds(plan.bound_extra_time_s)} (gap "
        f"{format_seconds(gap_s)}).",
        exactness,
    ]


def _share(peak_bytes: int, plan: Plan) -> float:
    return (peak_bytes - plan.resident_bytes) / (plan.eager_peak_bytes - plan.resident_bytes)


def _by_action(plan: Plan) -> dict[str, list[TensorDecision]]:
    groups: dict[str, list[TensorDecision]] = defaultdict(list)
    for decision in plan.decisions:
        groups[decision.action].append(decision)
    return dict(sorted(groups.items(), key=lambda item: -sum(d.nbytes for d in item[1])))


def _plain_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _totals(plan: Plan) -> Table:
    table = _plain_table("what happens to tensors that are not kept", "action", "tensors", "bytes in all")
    for action, group in _by_action(plan).items():
        table.add_row(action, str(len(group)), format_bytes(sum(d.nbytes for d in group)))
    return table


def _largest(plan: Plan, top: int) -> Table:
    table = _plain_table(f"the {min(top, len(plan.decisions))} largest of them", "tensor", "action", "bytes")
    for decision in sorted(plan.decisions, key=lambda d: -d.nbytes)[:top]:
        table.add_row(decision.tensor, decision.action, format_bytes(decision.nbytes))
    return table


def _splits(plan: Plan, top: int) -> Table:
    table = _plain_table(f"operators that run in parts ({len(plan.splits)})", "operator", "parts", "bits")
    for split in sorted(plan.splits, key=lambda s: -s.chunks)[:top]:
        name = f"{split.name} (made again)" if split.replay else split.name
        table.add_row(name, str(split.chunks), "eager's" if split.exact else "sums in another order")
    return table


def _print_timeline(console: Console, plan: Plan) -> None:
    timelines = {}
    for name in ("planned", "eager"):
        levels, mark = plan.timelines.get(name), plan.timeline_marks.get(name, {}).get("backward_at")
        if not levels or mark is None:
            return  # a step in eager mode has no timeline
        timelines[name] = levels, mark
    columns = max(20, min(_COLUMNS, console.width - 14))
    high = max(*timelines["planned"][0], *timelines["eager"][0])
    rows = timeline_rows(timelines["planned"], timelines["eager"], lines=_LINES, columns=columns)
    console.print("\nmemory over one step: █ planned, ░ what eager holds above it", markup=False, highlight=False)
    for number, row in enumerate(rows):
        level = format_bytes(high * (_LINES - number) // _LINES) if number % 4 == 0 else ""
        console.print(f"{level:>12} {row}", markup=False, highlight=False, no_wrap=True)
    half = columns // 2
    console.print(f"{'':12} {'forward pass':<{half}}backward pass and updates", markup=False, no_wrap=True)
