"""Rows of numbers as markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["exactness_table", "memory_table"]

MIB = 2**20


def memory_table(rows: Iterable[dict[str, Any]]) -> str:
    """One line a contestant; per cent are of eager's peak above the resident bytes."""
    head = ("model", "batch", "how", "peak MiB", "of eager", "step ms", "time / eager", "gradient error")
    lines = []
    for row in rows:
        start = (row["model"], str(row["batch"]), row["contestant"])
        if row.get("needed_bytes"):
            lines.append((*start, f"no plan: needs {row['needed_bytes'] / MIB:.1f}", "", "", "", ""))
            continue
        error = "0" if row["gradient_error"] == 0 else f"{row['gradient_error']:.1e}"
        numbers = (
            f"{row['peak_bytes'] / MIB:.1f}", f"{row['peak_share_ratio']:.1%}",
            f"{row['step_time_s'] * 1e3:.1f}", f"{row['time_ratio']:.2f}", error,
        )  # fmt: skip
        lines.append((*start, *numbers))
    return _markdown(head, lines, left=3)


def exactness_table(rows: Iterable[dict[str, Any]]) -> str:
    """One line a model, batch and budget: what was planned, what the allocator said, and the difference in bytes."""
    head = ("model", "batch", "budget", "budget bytes", "planned bytes", "measured bytes", "difference", "eager")
    lines = []
    for row in rows:
        start = (row["model"], str(row["batch"]), row["budget"], f"{row['budget_bytes']:,}")
        if row.get("needed_bytes"):
            lines.append((*start, f"no plan: needs {row['needed_bytes']:,}", "", "", ""))
            continue
        numbers = (row["planned_bytes"], row["measured_bytes"], row["difference_bytes"], row["eager_difference_bytes"])
        lines.append((*start, *(f"{n:,}" if n is not None else "" for n in numbers)))
    return _markdown(head, lines, left=3)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> str:
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([row(head), row(rule), *map(row, lines)])
