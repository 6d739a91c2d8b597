"""What plans cost, priced beside measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

__all__ = ["overhead_table"]

Row = Mapping[str, Any]
_HOW = {
    "device_overhead_ratio": "for its device",
    "priced_overhead_ratio": "priced here",
    "measured_overhead_ratio": "measured",
}
_LEGEND = """Overheads are of the seconds of the same program without a decision (not of eager PyTorch). For its device:
by the profile of the tier's device, as in virtual time. Priced here: by this machine's own times of each operator and
codec alone, before anything ran. Measured: median of the turns, each beside the plain program's of the same turn (in
brackets the quartiles). Stands in: the solver that was asked for finds no plan, so devices have one of ours, without
loss; such rows tell nothing of that solver."""


def overhead_table(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """One line a setting and tier, with the overheads of each kind of plan; means and how they compare below.

    Args:
        rows: One for each setting, tier and kind of plan; without overheads where no plan fits.
        kinds: Two or more: the first is compared with each of the others.
    """
    places: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        places.setdefault((row["setting"], row["tier"]), {})[row["plans"]] = row
    head = ["setting", "tier", "plain step"]
    head += [f"{kind}: {words}" for kind in kinds for words in ("solver", *_HOW.values())]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- | ---: |{' --- | ---: | ---: | ---: |' * len(kinds)}"]
    whole, compared = [], []
    for place, found in places.items():
        if all(row.get("decisions", [None])[0] == [] for row in found.values()):
            whole.append(" ".join(place))
            continue
        plain_s = [row["plain_step_s"] for row in found.values() if "plain_step_s" in row]
        cells = [
            f"{1e3 * plain_s[0]:.1f} ms" if plain_s else "",
            *(each for kind in kinds for each in _cells(found[kind])),
        ]
        lines.append(f"| {' | '.join([*place, *cells])} |")
        if all("solver" in row for row in found.values()):
            compared.append(found)
    own = [found for found in compared if all(map(_has_own, found.values()))]
    without = [found for found in places.values() if not _has_own(found[kinds[0]])]
    parts = ["\n".join(lines), _LEGEND]
    parts += [_means(kinds, compared, "as devices run them")] if compared else []
    parts += [_means(kinds, own, "in which each has a plan of its own")] if own else []
    parts += [_lower(kinds[0], other, own) for other in kinds[1:]] if own else []
    parts += [_alone(kinds, without)] if without else []
    parts += [f"The whole program fits, and nothing is decided: {', '.join(whole)}."] if whole else []
    return "\n\n".join([*parts, _peaks(rows)])


def _cells(row: Row) -> list[str]:
    if "solver" not in row:
        return ["no plan", "", "", ""]
    low, high = row["measured_quartile_ratios"]
    shown = [f"{row[name]:+.1%}" for name in _HOW]
    return [row["solver"] if row["own"] else "stands in", *shown[:-1], f"{shown[-1]} ({low:+.1%} to {high:+.1%})"]


def _means(kinds: Sequence[str], places: Sequence[Mapping[str, Row]], words: str) -> str:
    """A table of mean overheads."""
    lines = [f"| mean of {len(places)} {words} | {' | '.join(_HOW.values())} |", "| --- | ---: | ---: | ---: |"]
    means = {kind: [fmean(found[kind][name] for found in places) for name in _HOW] for kind in kinds}
    lines += [f"| {kind} | {' | '.join(f'{each:+.1%}' for each in means[kind])} |" for kind in kinds]
    one = kinds[0]
    for other in kinds[1:]:
        factors = [f"{a / b:.2f}" if a > 0 < b else "" for a, b in zip(means[one], means[other], strict=True)]
        lines.append(f"| {one} / {other} | {' | '.join(factors)} |")
    return "\n".join(lines)


def _lower(one: str, other: str, places: Sequence[Mapping[str, Row]]) -> str:
    differing = [found for found in places if found[one]["decisions"][0] != found[other]["decisions"][0]]
    words = f"Of these {len(places)} plans, {other} decide the same as {one} in {len(places) - len(differing)}"
    if not differing:
        return f"{words}."
    measured, priced = (
        sum(found[other][name] < found[one][name] for found in differing)
        for name in ("measured_overhead_ratio", "device_overhead_ratio")
    )
    return (
        f"{words}; in the other {len(differing)}, {other} cost less in {measured} as measured, in {priced} as priced "
        "for the device."
    )


def _has_own(row: Row) -> bool:
    return "solver" in row and row["own"]


def _alone(kinds: Sequence[str], places: Sequence[Mapping[str, Row]]) -> str:
    """What the others have where the first has no plan of its own."""
    found = []
    for other in kinds[1:]:
        ratios = [place[other]["device_overhead_ratio"] for place in places if _has_own(place[other])]
        cost = f", at {min(ratios):+.1%} to {max(ratios):+.1%} of a step by the device's profile" if ratios else ""
        found.append(f"{other} are found in {len(ratios)}{cost}")
    return f"Tiers where {kinds[0]} are missing: {len(places)}. There {'; '.join(found)}."


def _peaks(rows: Sequence[Row]) -> str:
    run = [row for row in rows if "solver" in row]
    exact = sum(row["peak_bytes"] == row["measured_peak_bytes"] for row in run)
    over = sum(row["measured_peak_bytes"] > row["budget_bytes"] for row in run)
    return f"Measured peaks: {exact} of {len(run)} are the planned ones to the byte, {over} above the budget."
