# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid run`: a recipe -> a federation trained, its records, its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhybrid.cli.arguments import parse_assignments
from fedhybrid.cli.output import results
from fedhybrid.cli.runs import check_out, close_run, told
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
    from fedhybrid.engine.footprint import keep_freed_memory

    settings = parse_assignments(overrides or ())
    if print_config:
        results().print(experiment.config_toml(recipe, settings), markup=False, highlight=False, soft_wrap=True, end="")
        return
    if out is None:
        raise ConfigError("--out DIR is missing; give a folder for the run, for example --out runs/first")
    check_out(out, lambda: experiment.config_toml(recipe, settings))
    keep_freed_memory()
    with told() as progress:
        result = experiment.run(recipe, out=out, overrides=settings, resume=resume, progress=progress)
    close_run(out, result.summaries)
