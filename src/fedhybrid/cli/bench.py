"""`fedhybrid bench`: runs a benchmark of the checkout that this package lies in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedhybrid.errors import ConfigError
from fedhybrid.registry import lookup

__all__ = ["bench", "benchmarks_in"]

CHECKOUT = Path(__file__).parents[3]


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A file of benchmarks/, without .py.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTION]...", help="Options of the benchmark; --help shows them.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Run a benchmark from the checkout's benchmarks/ folder; what follows its name goes to it.

    An installed package has no such folder: clone the repository, or run the command inside a clone.

    Examples:
      fedhybrid bench step_time
      fedhybrid bench memory -- --models mobilenet_v2 --budgets 40,20 --repeats 5
    """
    script = _script(name)
    extra = [*(arguments or ()), *(("--json",) if as_json else ())]
    done = subprocess.run([sys.executable, str(script), *extra], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def benchmarks_in(places: Sequence[Path]) -> dict[str, Path]:
    """The benchmarks of the first of these folders that has any: name -> file."""
    for place in places:
        if found := sorted((place / "benchmarks").glob("*.py")):
            return {path.stem: path for path in found}
    return {}


def _script(name: str) -> Path:
    known = benchmarks_in((CHECKOUT, Path.cwd()))
    if not known:
        raise ConfigError(
            f"there is no benchmarks/ folder beside this package ({CHECKOUT}) nor here; benchmarks come with a clone "
            "of the repository: run the command inside it"
        )
    return lookup("benchmark", known, name)
