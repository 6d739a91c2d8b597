"""A comparison's folder read back: `comparison.json`, and the records of every run that is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhybrid.errors import ConfigError
from fedhybrid.records import COMPARISON
from fedhybrid.report.load import RunRecords, load_records

__all__ = ["Cell", "Comparison", "joined", "load_comparison"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Runs that are compared with each other.

    Attributes:
        label: "scratch, alpha 0.1".
        seeds: That were asked for.
        targets: Accuracies that were fixed before the runs, ascending.
        reference: The variant with which the others are compared; None where none was named.
        oracle: The variant without limits, which has no place among the others; None where none was named.
        apart: Further variants that get no place.
        added: Variants that were named when the comparison had begun.
        effects: Two variants that differ in one thing, by what that is.
        first_seeds: How many seeds were asked for at first.
        runs: Finished runs by variant, and there by seed; a variant that has none yet is there, too.
        settings: The complete configuration of each variant, with the first seed.
    """

    label: str
    seeds: tuple[int, ...]
    targets: tuple[float, ...]
    reference: str | None
    oracle: str | None
    apart: frozenset[str]
    added: tuple[str, ...]
    effects: Mapping[str, tuple[str, str]]
    first_seeds: int
    runs: Mapping[str, Mapping[int, RunRecords]]
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def finished(self) -> dict[str, Mapping[int, RunRecords]]:
        """The variants that have finished runs."""
        return {label: runs for label, runs in self.runs.items() if runs}

    @property
    def missing(self) -> dict[str, int]:
        """How many runs are not finished, of variants that have such."""
        return {label: left for label, runs in self.runs.items() if (left := len(self.seeds) - len(runs))}

    @property
    def ranked_seeds(self) -> list[int]:
        """The seeds that all variants have finished which get a place: with others, who is missing would be no rival.

        A variant that has finished nothing at all gets none.
        """
        return [seed for seed in self.seeds if all(seed in runs for runs in self.racing.values())]

    @property
    def racing(self) -> dict[str, Mapping[int, RunRecords]]:
        """The variants that have finished runs and get a place: neither the oracle nor those apart."""
        return {
            label: runs for label, runs in self.finished.items() if label != self.oracle and label not in self.apart
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that a comparison has written.

    Attributes:
        folder: Where it lies.
        versions: Of fedhybrid, torch and Python, and the hash of the package's code; of several comparisons, all.
        codes: The hashes of all states of the code that made runs.
        cells: In the order of their runs.
    """

    folder: Path
    versions: Mapping[str, str]
    codes: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def variants(self) -> list[str]:
        """The labels of all variants, in the order in which they come."""
        return list(dict.fromkeys(label for cell in self.cells for label in cell.runs))


def load_comparison(folder: Path | str) -> Comparison:
    """What has been compared so far.

    Raises:
        ConfigError: No comparison lies there, or files of it cannot be read (all named).
    """
    folder = Path(folder)
    path = folder / COMPARISON
    try:
        raw = json.loads(path.read_bytes())
        problems: list[str] = []
        first_seeds = int(raw["first_seeds"] if "first_seeds" in raw else raw["seeds"])
        cells = tuple(_cell(folder, cell, first_seeds, problems) for cell in raw["cells"])
        versions = dict(raw["versions"])
        codes = tuple(raw.get("codes", ()))
    except OSError as error:
        raise ConfigError(f"{folder} is not the folder of a comparison: {path} cannot be read") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); give another --out") from error
    if problems:
        raise ConfigError(problems)
    return Comparison(folder=folder, versions=versions, codes=codes, cells=cells)


def joined(comparisons: Sequence[Comparison], folder: Path) -> Comparison:
    """Several comparisons as one, whose page lies in `folder`; their cells stand side by side.

    Raises:
        ConfigError: Two have a cell of the same label.
    """
    labels = [cell.label for each in comparisons for cell in each.cells]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"these comparisons cannot share a page, as several have the cell {twice[0]!r}")
    names = dict.fromkeys(name for each in comparisons for name in each.versions)
    return Comparison(
        folder=folder,
        versions={
            name: " and ".join(dict.fromkeys(each.versions[name] for each in comparisons if name in each.versions))
            for name in names
        },
        codes=tuple(dict.fromkeys(code for each in comparisons for code in each.codes)),
        cells=tuple(cell for each in comparisons for cell in each.cells),
    )


def _cell(folder: Path, raw: Mapping[str, Any], first_seeds: int, problems: list[str]) -> Cell:
    runs: dict[str, dict[int, RunRecords]] = {label: {} for label in raw["variants"]}
    for label, found in runs.items():
        for seed in raw["seeds"]:
            place = folder / "runs" / raw["folder"] / f"seed-{seed}" / label
            if not (place / "summary.json").is_file():
                continue
            try:
                found[seed] = load_records(place)
            except ConfigError as error:
                problems += error.problems
    return Cell(
        label=raw["label"],
        seeds=tuple(raw["seeds"]),
        targets=tuple(raw["targets"]),
        reference=raw["reference"],
        oracle=raw["oracle"],
        apart=frozenset(raw.get("apart", ())),
        added=tuple(raw.get("added", ())),
        effects={label: (variant, against) for label, (variant, against) in raw.get("effects", {}).items()},
        first_seeds=first_seeds,
        runs=runs,
        settings=raw["variants"],
    )
