# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""What every command that ends in a run's folder shares: is the folder fit, progress, the report, the closing table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from fedhybrid.cli.arguments import attempt
from fedhybrid.cli.closing import closing_lines, closing_table
from fedhybrid.cli.output import notes, results, stage
from fedhybrid.cli.progress import Bars, Lines
from fedhybrid.errors import ConfigError

if TYPE_CHECKING:
    from fedhybrid.records import Summary

__all__ = ["check_out", "close_run", "told"]


def check_out(out: Path, read_recipe: Callable[[], object]) -> None:
    """Makes sure that a run can be written there.

    Raises:
        ConfigError: It cannot; with what is wrong with the recipe besides.
    """
    problems: list[str] = []
    attempt(problems, lambda: _require_writable(out))
    if problems:
        attempt(problems, read_recipe)
        raise ConfigError(problems)


def told() -> Bars | Lines:
    """Progress for people: bars on a terminal, else lines."""
    console = notes()
    return Bars(console) if console.is_terminal else Lines(console)


def close_run(out: Path, summaries: Mapping[str, Summary]) -> None:
    """Draws the report, prints the closing table and where the report lies."""
    from fedhybrid.report import load_runs, notices, write_report

    console = notes()
    with stage(console, "drawing the report"):
        page = write_report(out)
    results().print(closing_table(summaries))
    for line in closing_lines(summaries):
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
