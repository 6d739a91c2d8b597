"""A table and a picture of methods that were compared under memory limits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter, ScalarFormatter

__all__ = ["draw_methods", "methods_table"]

MIB = 2**20


def methods_table(rows: Sequence[dict[str, Any]]) -> str:
    """One markdown table for each data set and group."""
    parts = []
    for key in dict.fromkeys((row["dataset"], row["group"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["group"]) == key]
        budgets: dict[str, int] = {}
        for row in own:
            if row["label"] != "no-limit":
                budgets |= row["budget_bytes"]
        tiers = sorted(budgets, key=budgets.__getitem__)
        limits = ", ".join(f"{tier} = {budgets[tier] / MIB:.1f} MiB" for tier in tiers)
        head = f"### {key[0]}, {key[1]}\n\nBudgets: {limits}. Target: {own[0]['target']}.\n"
        titles = ["", "method", "best accuracy", "final", "worst tenth", "time to target", "virtual time", "MiB up",
                  "MiB down", *(f"peak {tier}" for tier in tiers), "clients reached", "violations"]  # fmt: skip
        lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
        lines += ["| " + " | ".join(_cells(row, tiers)) + " |" for row in own]
        parts.append("\n".join([head, *lines]))
    return "\n\n".join(parts)


def _cells(row: dict[str, Any], tiers: Sequence[str]) -> list[str]:
    reached, clients = (sum(pair[i] for pair in row["reached"].values()) for i in (0, 1))
    peaks = [row["peak_bytes"].get(tier) for tier in tiers]
    return [
        row["label"],
        row["method"],
        _mean(row["best_accuracy"]),
        _mean(row["final_accuracy"]),
        _mean(row["worst_tenth_accuracy"]),
        _seconds(row["time_to_target_s"]),
        _seconds(row["virtual_time_s"]),
        f"{row['bytes_up'] / MIB:.1f}",
        f"{row['bytes_down'] / MIB:.1f}",
        *("none" if peak is None else f"{peak / MIB:.2f}" for peak in peaks),
        f"{reached} of {clients}",
        str(row["violations"]),
    ]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({min(known):.3f}-{max(known):.3f})" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{spread}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f} s"


def draw_methods(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over virtual time, a panel for each data set and group, a line for each variant (its first seed)."""
    keys = list(dict.fromkeys((row["dataset"], row["group"]) for row in rows))
    columns = min(len(keys), 3)
    height = -(-len(keys) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(5.2 * columns, 4.0 * height), squeeze=False)
    for axis in axes.flat[len(keys) :]:
        axis.set_visible(False)
    for axis, key in zip(axes.flat, keys, strict=False):
        for row in rows:
            if (row["dataset"], row["group"]) == key:
                times_s, accuracies = zip(*row["curve"][0], strict=True)
                style = "--" if row["label"] in ("no-limit", "exclusion") else "-"
                axis.plot(times_s, accuracies, style, label=row["label"], linewidth=1.4)
        axis.set_title(f"{key[0]}, {key[1]}")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("virtual seconds")
        axis.set_ylabel("test accuracy")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
