"""What was claimed of the headline comparison before its runs, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

__all__ = ["claims_table"]

_OURS, _PAPERS = "fedhybrid-plus", "fedhybrid-paper"
_DECLARED = "uci-har, memory tied to data"
_POINTS, _TIMES = 39.2, 15.6  # the paper has 39.1 % and 15.5x


def claims_table(numbers: Mapping[str, Any]) -> str:
    """A markdown table from a comparison's `table.json`; cells that are not finished are no part of it."""
    cells = {cell["label"]: cell for cell in numbers["cells"] if _OURS in cell["variants"]}
    rows = [*_declared(cells), *_rank(numbers), *_beside_paper(numbers, cells), *_memory(numbers), *_oracle(numbers)]
    lines = [
        "| claimed before the runs | found |",
        "| --- | --- |",
        *(f"| {claim} | {found} |" for claim, found in rows),
    ]
    missing = numbers["missing_runs"]
    return "\n".join(
        [f"{len(cells)} cells" + (f"; {missing:,} runs are not finished" if missing else ""), "", *lines, ""]
    )


def _declared(cells: Mapping[str, Any]) -> list[tuple[str, str]]:
    claim = f"{_DECLARED}: {_OURS} ends at least {_POINTS} points above exclusion"
    cell = cells.get(_DECLARED)
    if cell is None:
        return [(claim, "not run")]
    gain = cell["variants"][_OURS]["difference"]
    rows = [(claim, f"{_verdict(100 * gain['mean'] >= _POINTS)}: {100 * gain['mean']:+.1f} points")]
    best = [
        (cell["variants"][_OURS]["reference_best"]["beside"]["ratio"], label)
        for label, cell in cells.items()
        if (cell["variants"][_OURS]["reference_best"] or {}).get("beside", {}).get("ratio")
    ]
    if best:
        ratio, label = max(best)
        verdict = _verdict(ratio >= _TIMES)
        rows.append((f"or, in some cell, exclusion's best accuracy {_TIMES} times sooner",
                     f"{verdict}: at most {ratio:.2f} times ({label})"))  # fmt: skip
    return rows


def _rank(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    ranks = {label: each["rank"] for label, each in numbers["overall"].items() if each["rank"] is not None}
    if _OURS not in ranks:
        return []
    order = sorted(ranks, key=ranks.__getitem__)
    found = ", ".join(f"{label} {ranks[label]:.2f}" for label in order[:4])
    return [(f"{_OURS} is first in mean rank of time to the targets", f"{_verdict(order[0] == _OURS)}: {found}")]


def _beside_paper(numbers: Mapping[str, Any], cells: Mapping[str, Any]) -> list[tuple[str, str]]:
    effect = next(
        (each for each in numbers["effects"].values() if (each["variant"], each["against"]) == (_OURS, _PAPERS)), None
    )
    rows = []
    if effect is not None:
        mean = 100 * effect["difference"]["mean"]
        found = (
            f"{mean:+.1f} points on average; below by more than the interval in {effect['below']} of {effect['cells']}"
        )
        rows.append((f"{_OURS} is nowhere worse than {_PAPERS} beyond the interval, and better on average",
                     f"{_verdict(effect['below'] == 0 and mean > 0)}: {found}"))  # fmt: skip
    ratios = [
        (cell["variants"][own]["plan_ratio"], cell["variants"][other]["plan_ratio"])
        for own, other in [("plus-plans", "paper-plans")]
        for cell in cells.values()
        if all(cell["variants"].get(each, {}).get("plan_ratio") for each in (own, other))
    ]
    if ratios:
        ours, papers = fmean(own - 1 for own, _ in ratios), fmean(other - 1 for _, other in ratios)
        found = f"+{ours:.0%} and +{papers:.0%} of a step, mean over cells"
        rows.append(
            ("our plans cost less time than the paper's, for the same devices", f"{_verdict(ours < papers)}: {found}")
        )
    return rows


def _memory(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    over = sum(each["over_budget"] + each["short_steps"] for each in numbers["overall"].values())
    return [("no task is above its device's budget", f"{_verdict(over == 0)}: {over:,}")]


def _oracle(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    ours = numbers["overall"].get(_OURS, {})
    if not ours.get("short") or not ours.get("oracle"):
        return []
    short, times = 100 * ours["short"]["mean"], ours["oracle"]["mean"]
    found = f"{short:+.1f} points, {times:.2f} times its time to the targets that both reached"
    return [("within 1 point of no limit at all, in at most 1.2 times the time",
             f"{_verdict(short >= -1 and times <= 1.2)}: {found}")]  # fmt: skip


def _verdict(holds: bool) -> str:
    return "yes" if holds else "no"
