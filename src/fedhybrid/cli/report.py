# ruff: noqa: PLC0415 - imports wait until their command runs, so that --help answers at once
"""`fedhybrid report`: writes the report of a run's folder again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhybrid.cli.output import notes, results, stage

__all__ = ["report"]


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="The folder of a run, or those of comparisons.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the page of several comparisons goes.")] = None,
) -> None:
    """Write report.html and figures/ from the records of a finished run, and print where the report lies.

    The report is one file with its pictures inside; it opens from disk, without a server. Each run of a comparison gets
    its own as well. For what `fedhybrid compare` has made so far, its page and tables are written; several comparisons
    can share one page.

    Examples:
      fedhybrid report runs/quickstart
      fedhybrid report runs/uci-har runs/fashion-mnist --out runs/both
    """
    from fedhybrid.errors import ConfigError
    from fedhybrid.records import COMPARISON
    from fedhybrid.report import write_report
    from fedhybrid.report.comparison import write_comparison

    compared = [folder for folder in folders if (folder / COMPARISON).is_file()]
    if len(compared) < len(folders) and (len(folders) > 1 or out is not None):
        strange = next(folder for folder in folders if folder not in compared)
        raise ConfigError(f"{strange} is not the folder of a comparison; --out and several folders are for these")
    with stage(notes(), "drawing the report"):
        path = write_comparison(*compared, out=out).page if compared else write_report(folders[0])
    results().print(str(path), markup=False, highlight=False, soft_wrap=True)
