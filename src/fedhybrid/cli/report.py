# ruff: noqa: PLC0415 - imports wait until their command runs, so that --help answers at once
"""`fedhybrid report`: writes the report of a run's folder again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhybrid.cli.output import notes, results, stage

__all__ = ["report"]


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, or of runs that are compared.")],
) -> None:
    """Write report.html and figures/ from the records of a finished run, and print where the report lies.

    The report is one file with its pictures inside; it opens from disk, without a server. Each run of a comparison gets
    its own as well. For what `fedhybrid compare` has made so far, its page and tables are written.

    Examples:
      fedhybrid report runs/quickstart
    """
    from fedhybrid.records import COMPARISON
    from fedhybrid.report import write_report
    from fedhybrid.report.comparison import write_comparison

    with stage(notes(), "drawing the report"):
        path = write_comparison(folder).page if (folder / COMPARISON).is_file() else write_report(folder)
    results().print(str(path), markup=False, highlight=False, soft_wrap=True)
