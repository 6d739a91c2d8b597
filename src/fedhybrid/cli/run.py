# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid run`: a recipe -> a federation trained, its records, its report."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer

from fedhybrid.cli.arguments import attempt, parse_assignments
from fedhybrid.cli.closing import closing_lines, closing_table
from fedhybrid.cli.output import notes, results, stage
from fedhybrid.cli.progress import Bars, Lines
from fedhybrid.errors import ConfigError

__all__ = ["run"]


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, like recipes/quickstart.toml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the recipe's.")
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; new, or with --resume begun.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run in DIR stopped.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the complete configuration as TOML, run nothing.")
    ] = False,
) -> None:
    """Train a federation as a recipe says, and write its records and report.

    Settings are named as in the recipe, with a dot inside tables. A recipe with [compare] runs each of its variants
    on the same data, devices and seed, each in a folder with a report below DIR, and writes one report above them.

    Examples:
      fedhybrid run recipes/quickstart.toml --out runs/quickstart
      fedhybrid run recipes/quickstart.toml rounds=5 seed=2 --out runs/short
      fedhybrid run recipes/quickstart.toml --out runs/quickstart --resume
      fedhybrid run recipes/quickstart.toml method=fedavg --print-config

    DIR then holds report.html, summary.json, rounds.jsonl (a line a round, or an aggregation), clients.jsonl (a line a
    task, with budget, planned and measured peak), plans/, config.toml (complete) and model.safetensors.
    """
    from fedhybrid import experiment
    from fedhybrid.report import load_runs, notices, write_report

    settings = parse_assignments(overrides or ())
    if print_config:
        results().print(experiment.config_toml(recipe, settings), markup=False, highlight=False, soft_wrap=True, end="")
        return
    if out is None:
        raise ConfigError("--out DIR is missing; give a folder for the run, for example --out runs/first")
    problems: list[str] = []
    attempt(problems, lambda: _require_writable(out))
    if problems:
        attempt(problems, lambda: experiment.config_toml(recipe, settings))
        raise ConfigError(problems)
    console = notes()
    with Bars(console) if console.is_terminal else Lines(console) as progress:
        result = experiment.run(recipe, out=out, overrides=settings, resume=resume, progress=progress)
    with stage(console, "drawing the report"):
        page = write_report(out)
    results().print(closing_table(result.summaries))
    for line in closing_lines(result.summaries):
        results().print(line, markup=False, highlight=False, soft_wrap=True)
    results().print(f"report: {page.resolve()}", markup=False, highlight=False, soft_wrap=True)
    for notice in notices(load_runs(out)):
        console.print(f"note: {notice}".replace("\u00a0", " "), markup=False, highlight=False, soft_wrap=True)


def _require_writable(folder: Path) -> None:
    """Makes the folder, to see that it can be, and takes away again what was not there: the recipe may be refused."""
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--out {folder}: no run can be written there ({reason}); give another folder") from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
