"""`fh.run`: a recipe in, a trained federation and its records out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedhybrid.engine import (
    Assemble,
    Claim,
    Progress,
    Quiet,
    RunFolder,
    claim_folders,
    process_resident_bytes,
    run_federation,
)
from fedhybrid.experiment.build import Datasets, build_federation
from fedhybrid.experiment.check import Recipe, load_config, to_table, variants_of
from fedhybrid.experiment.parallel import run_side_by_side
from fedhybrid.experiment.parts import input_files
from fedhybrid.experiment.pretraining import keep_pretrained
from fedhybrid.experiment.result import RunResult, load_run

__all__ = ["processors", "run"]


def run(
    recipe: Recipe,
    *,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    processes: int | None = None,
    assemble: Assemble | None = None,
) -> RunResult:
    """Runs a recipe, with all its variants if it compares some, into a folder.

    Variants share seed, and so the deal of the data, the fleet and the initial weights; each runs in `out/<label>`.
    The numbers do not depend on `processes`.

    Args:
        recipe: A TOML file, or its content as nested mappings.
        out: The run's folder: new, empty, or with `resume` that of a run which was stopped (a finished one is only
            read, or goes on if more rounds are asked for).
        overrides: Settings that replace the recipe's, by dotted path: `{"rounds": 5, "train.lr": 0.1}`.
        resume: Go on with the run in `out`, if there is one.
        progress: Is told what happens.
        processes: How many variants run at the same time; by default as many as there are processors for
            their workers.
        assemble: Brings devices that are elsewhere (`engine.run_federation`); variants run one after the other then.

    Raises:
        ConfigError: Every problem of the recipe at once; or `out` holds what must not be overwritten.
        CaptureError: The model's training step cannot be captured.
    """
    runtime_bytes = process_resident_bytes()
    folder, progress = Path(out), progress or Quiet()
    config = load_config(recipe, overrides)
    variants = variants_of(config)
    runs = variants or {"": config}
    datasets: Datasets = {}
    folders = {label: folder / label if label else folder for label in runs}
    jobs = {
        label: build_federation(each, datasets, folder=folders[label], say=partial(progress.on_stage, label))
        for label, each in runs.items()
    }
    whole = [Claim(path=folder, config=to_table(config))] if variants else []
    claims = [
        Claim(
            path=folders[label],
            config=to_table(each),
            devices=[tier.device for tier in jobs[label].fleet.tiers],
            files=input_files(each),
        )
        for label, each in runs.items()
    ]
    claim_folders(whole + claims, resume=resume)
    for label, job in jobs.items():
        keep_pretrained(folders[label], job.pretrained)
    open_labels = [label for label in runs if not _report_finished(label, folders[label], runs[label].rounds, progress)]
    hands = max(each.workers for each in runs.values())
    at_once = min(len(open_labels), processes or max(processors() // hands, 1))
    elsewhere: dict[str, Assemble] = {} if assemble is None else {"assemble": assemble}
    if at_once > 1 and not elsewhere:
        run_side_by_side({label: folders[label] for label in open_labels}, at_once, progress)
    else:
        for label in open_labels:
            run_federation(
                jobs.pop(label),
                RunFolder(folders[label]),
                progress,
                label=label,
                runtime_bytes=runtime_bytes,
                **elsewhere,
            )
    return load_run(folder)


def processors() -> int:
    """Processors that this process may use, where the system tells, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report_finished(label: str, folder: Path, rounds: int, progress: Progress) -> bool:
    """Whether the run is complete already; then `progress` hears of it."""
    if not RunFolder(folder).is_finished(rounds):
        return False
    summary = load_run(folder).summary
    assert summary is not None
    progress.on_start(label, first_round=rounds, rounds=rounds)
    progress.on_end(label, summary)
    return True
