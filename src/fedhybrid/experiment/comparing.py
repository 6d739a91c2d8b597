"""`compare`: every variant of every recipe at every point of its grid, with several seeds, in one folder.

The folder holds `comparison.json`, which is written before the first run and fixes what is compared, and below
`runs/CELL/seed-N/VARIANT` each run's own folder. The same call goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhybrid.devices import DeviceProfile
from fedhybrid.engine import Claim, Progress, Quiet, RunFolder, claim_folders
from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.experiment.build import Datasets, build_federation
from fedhybrid.experiment.cells import Cell, cells_of
from fedhybrid.experiment.check import Recipe, to_table
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.fixing import check_place, check_versions, described, store
from fedhybrid.experiment.parallel import OnFailure, run_side_by_side
from fedhybrid.experiment.parts import input_files
from fedhybrid.experiment.running import processors
from fedhybrid.records import Summary, read_record

__all__ = ["CellRun", "compare", "failures_as_one", "runs_of"]


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """One run of a comparison. `folder` is relative to the comparison's, `variant` names cell and variant."""

    label: str
    folder: Path
    config: RunConfig
    variant: tuple[str, str]


def runs_of(cells: Sequence[Cell], seeds: int) -> list[CellRun]:
    """All runs, cell by cell and there seed by seed, so that what is finished first can be compared."""
    return [
        CellRun(
            label=f"{cell.label}, seed {seed}: {label}",
            folder=Path("runs") / cell.folder / f"seed-{seed}" / label,
            config=config.model_copy(update={"seed": seed}),
            variant=(cell.label, label),
        )
        for cell in cells
        for seed in range(cell.first_seed, cell.first_seed + seeds)
        for label, config in cell.variants.items()
    ]


def compare(
    recipes: Mapping[str, Recipe],
    *,
    out: str | Path,
    seeds: int = 3,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    processes: int | None = None,
    on_failure: OnFailure | None = None,
    on_note: Callable[[str], object] = lambda note: None,
) -> Path:
    """Runs a comparison, or what is left of it, into a folder; `report.comparison` makes its page.

    All variants of a cell share data, fleet and initial weights with each seed, as far as they do not set these
    themselves, which the page tells. More seeds may be asked for later;
    everything else is fixed by the first call. A run that fails does not stop the others.

    Args:
        recipes: By name.
        out: The folder: new, empty, or that of the same comparison.
        seeds: How many; the first is the recipe's own, the others count on from it.
        overrides: Settings that replace the recipes', also in variants and grids, by dotted path.
        progress: Is told what happens, with the labels of `runs_of`.
        processes: How many runs go on at the same time; by default as many as there are processors for their workers.
        on_failure: Is told of each run that fails; without it, they are raised together when all others are done.
        on_note: Is told what to beware of before the first run.

    Returns:
        The folder.

    Raises:
        ConfigError: Every problem of the recipes at once; a folder of something else or of another comparison; what
            runs failed with (`failures_as_one`).
        RuntimeError: Runs failed, and some of them for an unknown reason.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    folder, progress = Path(out), progress or Quiet()
    cells = cells_of(recipes, overrides)
    wanted = described(cells, seeds)
    check_place(folder, wanted)
    left = [run for run in runs_of(cells, seeds) if not _report_finished(run, folder, progress)]
    if left and (note := check_versions(folder, wanted)):
        on_note(note)
    devices = _checked(cells, {run.variant for run in left})
    folder.mkdir(parents=True, exist_ok=True)
    with RunFolder(folder).locked():
        store(folder, wanted, running=bool(left))
        for run in left:
            claim = Claim(
                path=folder / run.folder,
                config=to_table(run.config),
                devices=devices[run.variant],
                files=input_files(run.config),
            )
            claim_folders([claim], resume=True)
        failures: dict[str, Exception] = {}
        if left:
            at_once = processes or max(processors() // max(run.config.workers for run in left), 1)
            folders = {run.label: folder / run.folder for run in left}
            run_side_by_side(folders, at_once, progress, on_failure=on_failure or failures.setdefault)
    if failures:
        raise failures_as_one(failures)
    return folder


def _report_finished(run: CellRun, folder: Path, progress: Progress) -> bool:
    """Whether the run is complete already; then `progress` hears of it.

    Raises:
        ConfigError: A file of the run is damaged.
    """
    path, rounds = folder / run.folder, run.config.rounds
    if not RunFolder(path).is_finished(rounds):
        return False
    progress.on_start(run.label, first_round=rounds, rounds=rounds)
    progress.on_end(run.label, read_record(Summary, path / "summary.json"))
    return True


def _checked(cells: Sequence[Cell], wanted: set[tuple[str, str]]) -> dict[tuple[str, str], list[DeviceProfile]]:
    """Builds each variant with its first seed, to see that data, fleet and model go together; gives its devices.

    Raises:
        ConfigError: What is wrong with any of them, each problem once.
    """
    datasets: Datasets = {}
    devices: dict[tuple[str, str], list[DeviceProfile]] = {}
    problems: dict[str, str] = {}  # with the first that has it
    for cell in cells:
        for label, config in cell.variants.items():
            if (cell.label, label) not in wanted:
                continue
            try:
                fleet = build_federation(config, datasets, values=False).fleet
            except ConfigError as error:
                problems |= {problem: f"{cell.label}: {label}" for problem in error.problems if problem not in problems}
                continue
            devices[cell.label, label] = [tier.device for tier in fleet.tiers]
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem, where in problems.items()])
    return devices


def failures_as_one(failures: Mapping[str, Exception]) -> Exception:
    """One error for all runs that failed."""
    problems = [
        problem if problem.startswith((label, f"variant {label!r}")) else f"{label}: {problem}"
        for label, error in failures.items()
        for problem in (error.problems if isinstance(error, ConfigError) else [str(error)])
    ]
    if all(isinstance(error, FedHybridError) for error in failures.values()):
        return ConfigError(problems)
    return RuntimeError(f"{len(failures)} runs failed; the same command tries them again: {'; '.join(problems)}")
