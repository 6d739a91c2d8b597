"""What the page of a comparison says in words: the headline, key facts, what to beware of, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedhybrid.report.comparison.figures import Scene
from fedhybrid.report.comparison.load import Comparison
from fedhybrid.report.comparison.overall import Overall, Spread
from fedhybrid.report.comparison.sharing import sharing_notices, sharing_words
from fedhybrid.report.sentences import KeyFact
from fedhybrid.report.text import percent

__all__ = ["headline", "key_facts", "made", "notices", "reference_words", "subject"]

_FEW_SEEDS = 3
_NAMED = 6


def subject(comparison: Comparison) -> str:
    """How much was compared."""
    cells, variants = len(comparison.cells), len(comparison.variants)
    seeds = max(len(cell.seeds) for cell in comparison.cells)
    return f"comparison · {_count(cells, 'cell')} · {_count(variants, 'variant')} · {_count(seeds, 'seed')}"


def reference_words(scenes: Sequence[Scene]) -> str:
    """The reference's name; several where cells have different ones."""
    return " or ".join(dict.fromkeys(scene.result.reference for scene in scenes if scene.result.reference))


def headline(scenes: Sequence[Scene], found: Mapping[str, Overall]) -> str:
    """Who ends best beside the reference, with the range over cells; without one, who ends best how often.

    Variants with runs that are not finished are left out, as easier seeds would look like better methods.
    """
    whole = _racing(scenes, found)
    gains = {label: each.difference for label, each in whole.items() if each.difference}
    if gains and all(scene.cell.reference not in scene.cell.missing for scene in scenes):
        best = max(gains, key=lambda label: (gains[label].count, gains[label].mean))  # first who is in most cells
        return _beside_reference(best, whole[best], gains[best], reference_words(scenes))
    ends = []
    for scene in scenes:
        race = {label: each for label, each in scene.result.variants.items() if label in whole}
        if race and (len(race) > 1 or len(scene.cell.runs) == 1):
            ends.append(race)
    if not ends:
        some = any(scene.result.variants for scene in scenes)
        return "Too few variants have finished all of their runs." if some else "No run is finished yet."
    firsts = [max(variants, key=lambda label: variants[label].final.mean) for variants in ends]
    best = max(dict.fromkeys(firsts), key=firsts.count)
    return f"{best} has the highest final test accuracy in {firsts.count(best)} of {_count(len(ends), 'cell')}."


def key_facts(scenes: Sequence[Scene], found: Mapping[str, Overall]) -> list[KeyFact]:
    """Memory kept, who is soonest, how much sooner, and what plans cost."""
    facts = [_memory(scenes)]
    whole = _racing(scenes, found)
    ranks = {label: each.rank for label, each in whole.items() if each.rank is not None}
    if first := _first(ranks):
        targets = sum(len(scene.result.targets) for scene in scenes)
        unreached = sum(scene.result.unreached for scene in scenes)
        left_out = f"; {unreached:,} of {_count(targets, 'target')} left out, which nobody reached" if unreached else ""
        detail = f"mean place among {_count(len(ranks), 'variant')} in time to the targets; first is {first}{left_out}"
        facts.append(KeyFact(value=f"{ranks[first]:.2f}", name="best mean rank", detail=detail))
    references = {scene.result.reference for scene in scenes}
    if soonest := _first({label: rank for label, rank in ranks.items() if label not in references}):
        facts += _sooner(soonest, whole[soonest], reference_words(scenes))
    overheads = {label: each.plan_ratio for label, each in whole.items() if each.plan_ratio is not None}
    if overheads:
        label = max(overheads, key=lambda name: overheads[name])
        detail = f"of a step's time on the devices served, the largest mean of the variants that get a place ({label})"
        facts.append(KeyFact(value=f"+{percent(overheads[label] - 1)}", name="plan overhead", detail=detail))
    return facts


def notices(comparison: Comparison, scenes: Sequence[Scene]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = []
    if missing := sum(sum(scene.cell.missing.values()) for scene in scenes):
        total = sum(len(scene.cell.seeds) * len(scene.cell.runs) for scene in scenes)
        named = [
            f"{scene.cell.label}: {label} ({left:,} of {len(scene.cell.seeds):,})"
            for scene in scenes
            for label, left in scene.cell.missing.items()
        ]
        found.append(
            f"{missing:,} of {total:,} runs are not finished; numbers are of the others, and variants that miss runs "
            f"are in no headline: {_listed(named)}."
        )
    for count, what in (("over_budget", "tasks measured a peak above their device\u2019s budget"),
                        ("short_steps", "steps ran while a device had less memory left than they needed")):  # fmt: skip
        sums = {
            f"{scene.cell.label}: {label}": number
            for scene in scenes
            for label, each in scene.result.variants.items()
            if (number := getattr(each, count))
        }
        if sums:
            most = sorted(sums, key=lambda where: -sums[where])
            found.append(f"{sum(sums.values()):,} {what} ({_listed([f'{where}, {sums[where]:,}' for where in most])}).")
    if stood_in := _stood_in(scenes):
        found.append(
            "Where the solver that a recipe names finds no plan, one without loss by \u201cauto\u201d stands in; what "
            f"it costs is not that solver\u2019s: {'; '.join(stood_in)}."
        )
    fewest = min(len(scene.cell.seeds) for scene in scenes)
    if fewest == 1:
        found.append("One seed only: there are no intervals, and differences may be chance.")
    elif fewest < _FEW_SEEDS:
        found.append("Two seeds only: intervals are very wide, and differences may be chance.")
    found += sharing_notices(comparison.cells)
    if len(comparison.codes) > 1:
        found.append(
            f"Runs were made by {len(comparison.codes)} states of the package\u2019s code "
            f"({', '.join(comparison.codes)}); they may not compare."
        )
    return found


def made(comparison: Comparison) -> str:
    """Seeds, targets and versions."""
    seeds = sorted({cell.seeds for cell in comparison.cells})
    listed = "; ".join(", ".join(map(str, each)) for each in seeds)
    versions = ", ".join(f"{name} {number}" for name, number in comparison.versions.items())
    later = {
        "seed": [[str(seed) for seed in cell.seeds[cell.first_seeds :]] for cell in comparison.cells],
        "variant": [list(cell.added) for cell in comparison.cells],
    }
    added = [_added_later(what, cells) for what, cells in later.items() if any(cells)]
    return (
        f"Seeds {listed}. {sharing_words(comparison.cells)} Targets, {'the first ' if any(later['seed']) else ''}seeds "
        f"and configurations {'of all other variants ' if any(later['variant']) else ''}were written to "
        f"comparison.json before the first run.{''.join(f' {words}.' for words in added)} Versions: {versions}."
    )


def _stood_in(scenes: Sequence[Scene]) -> list[str]:
    """Each variant for which plans stood in, in how many cells, and in which tiers."""
    words = []
    for label in dict.fromkeys(label for scene in scenes for label in scene.result.variants):
        cells = [found.stand_in_tiers for scene in scenes if (found := scene.result.variants.get(label))]
        if tiers := list(dict.fromkeys(tier for each in cells for tier in each)):
            words.append(f"{label} in {sum(map(bool, cells)):,} of {_count(len(cells), 'cell')} ({', '.join(tiers)})")
    return words


def _added_later(what: str, cells: Sequence[Sequence[str]]) -> str:
    """Which seeds or variants were not asked for at first, and in how many cells."""
    names = list(dict.fromkeys(name for each in cells for name in each))
    count = sum(bool(each) for each in cells)
    where = "" if count == len(cells) else f" in {count:,} of {len(cells):,} cells"
    verb = f"{what.capitalize()} {{}} was" if len(names) == 1 else f"{what.capitalize()}s {{}} were"
    return f"{verb.format(', '.join(names))} added later{where}"


def _racing(scenes: Sequence[Scene], found: Mapping[str, Overall]) -> dict[str, Overall]:
    """The variants that can be first: no oracles, none apart, and none that misses runs."""
    racing = {label for scene in scenes for label in scene.cell.racing}
    return {label: each for label, each in found.items() if label in racing and not each.missing}


def _beside_reference(label: str, each: Overall, gain: Spread, reference: str) -> str:
    """How far from the reference it ends, and whether more than chance says so."""
    up = gain.mean >= 0
    beyond, against = (each.above, each.below) if up else (each.below, each.above)
    where = f"on average over {gain.count:,} cells" if gain.count > 1 else "in one cell"
    inside = [f"cells: {_points(gain.low)} to {_points(gain.high)}"] if gain.count > 1 else []
    if each.intervals:
        inside.append(f"beyond the 95\u00a0% interval in {beyond:,} of {each.intervals:,}")
    if against:
        inside.append(f"to the other side in {against:,}")
    chance = ", within chance" if each.intervals and not beyond else ""
    brackets = f" ({'; '.join(inside)})" if inside else ""
    points = f"{100 * abs(gain.mean):.1f} points {'above' if up else 'below'}"
    if points.startswith("0.0"):
        points = "level with"
    return f"{label} ends {points} {reference} in test accuracy, {where}{chance}{brackets}."


def _first(ranks: Mapping[str, float]) -> str | None:
    """The one with the best rank; None where several share it."""
    best = min(ranks.values(), default=0.0)
    firsts = [label for label, rank in ranks.items() if rank <= best + 1e-9]
    return firsts[0] if len(firsts) == 1 else None


def _sooner(label: str, each: Overall, reference: str) -> list[KeyFact]:
    """How much sooner than the reference it reaches targets, and how often it does not."""
    counts = each.counts
    if not counts.known:
        return []
    words = f"{counts.both:,} that both reached, {counts.alone:,} reached alone, {counts.missed:,} missed"
    if each.speed_up is None:
        return [KeyFact(value=f"{counts.alone:,} / {counts.missed:,}", name=f"targets beside {reference}",
                        detail=f"{label}, targets of all seeds: {words}")]  # fmt: skip
    mean, low, high = each.speed_up.mean, each.speed_up.low, each.speed_up.high
    name = f"speed-up on {reference}"
    detail = (
        f"{label}, first in rank but for the reference; targets of all seeds: {words}; {_times(low)} to {_times(high)}"
    )
    if mean < 1:
        name = f"the time of {reference}"
        detail = (
            f"{label}, first in rank but for the reference, takes {_times(1 / mean)} the time; targets of all seeds: "
            f"{words}; {_times(1 / high)} to {_times(1 / low)}"
        )
    return [KeyFact(value=_times(mean if mean >= 1 else 1 / mean), name=name, detail=detail)]


def _memory(scenes: Sequence[Scene]) -> KeyFact:
    every = [each for scene in scenes for each in scene.result.variants.values()]
    over, measured = sum(each.over_budget for each in every), sum(each.measured for each in every)
    peaks = [each.peak_ratio for each in every if each.peak_ratio is not None]
    largest = f"; the largest is {percent(max(peaks), 2)} of its budget" if peaks else ""
    detail = f"tasks whose measured peak is above the device's budget{largest}"
    return KeyFact(value=f"{over:,} of {measured:,}", name="over budget", detail=detail)


def _points(ratio: float) -> str:
    return f"{100 * ratio:+.1f}".replace("-", "\u2212")


def _times(ratio: float) -> str:
    return f"{ratio:.3g}\u00d7" if ratio < 1000 else f"{ratio:,.0f}\u00d7"


def _listed(words: Sequence[str]) -> str:
    return "; ".join(words[:_NAMED]) + (f"; and {len(words) - _NAMED:,} more" if len(words) > _NAMED else "")


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
