# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid explain`: a readable account of one plan: what it does to which tensors, and where its peak is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhybrid.cli.options import JsonOption

__all__ = ["explain"]


def explain(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="Written by `fedhybrid plan ... --out DIR`.")],
    *,
    top: Annotated[int, typer.Option(metavar="N", help="How many tensors and operators to name, largest first.")] = 12,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write timeline.png there.")] = None,
) -> None:
    """Explain a plan: bytes, peak operator, what is dropped, encoded or split, and memory over the step.

    Nothing is captured or run: everything is in the file, so a plan from another machine can be read anywhere.

    Examples:
      fedhybrid plan resnet20 --batch 32 --input 3x32x32 --budget 40% --out plans/resnet20
      fedhybrid explain plans/resnet20/plan.json
      fedhybrid explain plans/resnet20/plan.json --top 5 --json
    """
    from fedhybrid.cli.account import show_account
    from fedhybrid.cli.planning import read_plan
    from fedhybrid.errors import ConfigError

    if top < 0:
        raise ConfigError(f"--top must be 0 or more, got {top}")
    show_account(read_plan(plan_file, "PLAN.json"), top=top, as_json=as_json, out=out)
