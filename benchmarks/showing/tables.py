"""Rows of numbers as markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from scipy.stats import t as student

__all__ = ["activations_table", "codecs_table", "exactness_table", "memory_table", "training_table"]

MIB = 2**20


def memory_table(rows: Iterable[dict[str, Any]]) -> str:
    """One line a contestant; per cent are of eager's peak above the resident bytes."""
    head = (
        "model", "batch", "how", "peak MiB", "of eager", "step ms", "time / eager", "gradient error", "predicted",
        "cosine",
    )  # fmt: skip
    lines = []
    for row in rows:
        start = (row["model"], str(row["batch"]), row["contestant"])
        if row.get("needed_bytes"):
            lines.append((*start, f"no plan: needs {row['needed_bytes'] / MIB:.1f}", *[""] * 6))
            continue
        error = "0" if row["gradient_error"] == 0 else f"{row['gradient_error']:.1e}"
        predicted = f"{row['predicted_error']:.1e}" if row.get("predicted_error") else ""
        numbers = (
            f"{row['peak_bytes'] / MIB:.1f}", f"{row['peak_share_ratio']:.1%}",
            f"{row['step_time_s'] * 1e3:.1f}", f"{row['time_ratio']:.2f}", error,
            predicted, f"{row['gradient_cosine']:.5f}",
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


def codecs_table(rows: Iterable[dict[str, Any]]) -> str:
    """One line a codec and width."""
    head = ("codec", "bits a value", "encode / clone", "decode / clone", "bytes ratio", "relative error")
    lines = [
        (row["name"], f"{row['bits']:.2f}", f"{row['encode_over_clone']:.2f}", f"{row['decode_over_clone']:.2f}",
         f"{row['bytes_ratio']:.3f}", f"{row['relative_error']:.1e}")
        for row in rows
    ]  # fmt: skip
    return _markdown(head, lines, left=1)


def activations_table(rows: Iterable[dict[str, Any]]) -> str:
    """One line a model and kind of tensor; means of the tensors' relative squared errors."""
    how_coded = ("tensor", "group", "channel", "mixed")
    head = ("model", "tensors", "number", "one range", "groups of 256", "a range a channel", "mixed widths")
    lines = [
        (row["model"], row["kind"], str(row["tensors"]), *(f"{row[how]:.2e}" for how in how_coded)) for row in rows
    ]
    return _markdown(head, lines, left=2)


def training_table(rows: Iterable[dict[str, Any]], reference: str) -> str:
    """One line a data set, model and codec: last accuracy (mean and 95 % interval over seeds) and the difference.

    The difference is that of runs with equal seeds, in points; its interval is Student's.
    """
    groups: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for row in rows:
        by_codec = groups.setdefault((row["data"], row["model"]), {})
        by_codec.setdefault(row["codec"], {})[row["seed"]] = row
    head = ("data", "model", "codec", "peak of eager", "last accuracy", "difference in points")
    lines = []
    for (data, model), by_codec in groups.items():
        plain = by_codec.get(reference, {})
        for codec, by_seed in by_codec.items():
            last = [row["accuracy"][-1] for row in by_seed.values()]
            apart = [100 * (row["accuracy"][-1] - plain[s]["accuracy"][-1]) for s, row in by_seed.items() if s in plain]
            share = next(iter(by_seed.values()))["peak_share_ratio"]
            difference = "" if codec == reference else _interval(apart, 1)
            lines.append((data, model, codec, f"{share:.1%}", _interval(last, 3), difference))
    return _markdown(head, lines, left=3)


def _interval(values: Sequence[float], digits: int) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.{digits}f} ± {half:.{digits}f}"
