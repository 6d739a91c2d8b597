# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid compare`: recipes with variants -> runs with several seeds, one table a cell, one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedhybrid.cli.arguments import attempt, parse_assignments
from fedhybrid.cli.many import ManyBars, ManyLines
from fedhybrid.cli.output import notes, results, stage
from fedhybrid.cli.runs import check_out
from fedhybrid.errors import ConfigError

__all__ = ["compare", "draw_comparison"]

_TABLE_WIDTH = 160  # whatever the terminal has: a label that is cut off names nothing


def compare(
    given: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="TOML files with [compare], and settings for them."),
    ],
    *,
    seeds: Annotated[int, typer.Option(metavar="N", help="Seeds of each variant; the first is the recipe's.")] = 3,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The comparison's folder; new, or one to go on with.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Runs at the same time; by default as processors allow.")
    ] = None,
) -> None:
    """Compare the variants of recipes: all runs of all cells side by side, then one page with tables and figures.

    A cell is a recipe at one point of its [compare.grid]; in each, all variants run with each seed on the same data,
    fleet and initial weights, unless a variant sets these itself. [compare] also has targets (accuracies whose times
    are told) and the reference variant. Everything is fixed in DIR/comparison.json before the first run. The same
    command goes on where it was stopped.

    Examples:
      fedhybrid compare recipes/comparisons/tiny.toml --seeds 2 --out runs/tiny
      fedhybrid compare a.toml b.toml data.root=DIR rounds=40 --out runs/both
      fedhybrid compare recipes/comparisons/tiny.toml 'compare.grid.data.alpha=[0.1, 1.0]' --out runs/alphas

    DIR then holds comparison.html, figures/, table.md, table.json, and below runs/ each run's folder.
    """
    problems: list[str] = []
    recipes = attempt(problems, lambda: _recipes([word for word in given if _is_recipe(word)])) or {}
    settings = attempt(problems, lambda: parse_assignments([word for word in given if not _is_recipe(word)])) or {}
    if seeds < 1:
        problems.append(f"--seeds must be at least 1, got {seeds}")
    if out is None:
        problems.append("--out DIR is missing; give a folder for the comparison, for example --out runs/compared")
    if problems or out is None:
        raise ConfigError(problems)
    _run(recipes, settings, seeds=seeds, out=out, processes=processes)


def draw_comparison(out: Path) -> None:
    """Writes the page, prints the table of all cells and where everything lies."""
    from fedhybrid.report.comparison import write_comparison

    with stage(notes(), "drawing the page"):
        written = write_comparison(out)
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(written.brief.heads):
        table.add_column(head, justify="left" if i < written.brief.left else "right", vertical="bottom", no_wrap=True)
    for row in written.brief.rows:
        table.add_row(*(cell.replace("\u00a0", " ") for cell in row))
    console = results()
    console.width = max(console.width, _TABLE_WIDTH)  # a narrow terminal wraps the lines itself
    console.print(table)
    for name, path in (("page", written.page), ("tables", written.text)):
        results().print(f"{name}: {path.resolve()}", markup=False, highlight=False, soft_wrap=True)
    for notice in written.notices:
        notes().print(f"note: {notice}".replace("\u00a0", " "), markup=False, highlight=False, soft_wrap=True)


def _run(
    recipes: Mapping[str, Path], settings: dict[str, Any], *, seeds: int, out: Path, processes: int | None
) -> None:
    from fedhybrid import experiment
    from fedhybrid.experiment.cells import cells_of
    from fedhybrid.experiment.comparing import failures_as_one

    check_out(out, lambda: cells_of(recipes, settings))
    runs = seeds * sum(len(cell.variants) for cell in cells_of(recipes, settings))
    console = notes()
    failures: dict[str, Exception] = {}
    with ManyBars(console, runs) if console.is_terminal else ManyLines(console, runs) as progress:

        def failed(label: str, error: Exception) -> None:
            failures[label] = error
            progress.on_failure(label, error)

        experiment.compare(
            recipes,
            out=out,
            seeds=seeds,
            overrides=settings,
            progress=progress,
            processes=processes,
            on_failure=failed,
            on_note=lambda note: console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True),
        )
    draw_comparison(out)
    if failures:
        raise failures_as_one(failures)


def _is_recipe(word: str) -> bool:
    """A file's name may have an equals sign in it."""
    return "=" not in word or Path(word).is_file()


def _recipes(words: Sequence[str]) -> dict[str, Path]:
    """The files by their names without the ending.

    Raises:
        ConfigError: None at all, or two of one name.
    """
    if not words:
        raise ConfigError("no recipe is given; name a TOML file, for example recipes/comparisons/tiny.toml")
    found: dict[str, Path] = {}
    problems = []
    for path in map(Path, words):
        if (twin := found.setdefault(path.stem, path)) is not path:
            problems.append(f"{twin} and {path} have the same name, and cells are named after it; rename one")
    if problems:
        raise ConfigError(problems)
    return found
