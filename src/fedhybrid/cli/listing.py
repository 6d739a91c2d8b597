# ruff: noqa: PLC0415 - imports wait until their command runs, so that --help answers at once
"""`fedhybrid list`: walks a table of plug-ins and says what each row is."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhybrid.cli.output import print_json, results
from fedhybrid.registry import lookup

__all__ = ["TABLES", "descriptions", "list_plugins", "table_of"]

# Kind of plug-in -> the package that holds its table, and the table's name there.
TABLES: Mapping[str, tuple[str, str]] = {
    "codecs": ("fedhybrid.codecs", "CODECS"),
    "datasets": ("fedhybrid.data", "DATASETS"),
    "devices": ("fedhybrid.devices", "DEVICES"),
    "methods": ("fedhybrid.methods", "METHODS"),
    "models": ("fedhybrid.models", "MODELS"),
    "partitions": ("fedhybrid.data", "PARTITIONS"),
    "policies": ("fedhybrid.selection", "POLICIES"),
    "predictors": ("fedhybrid.fleet", "PREDICTORS"),
    "solvers": ("fedhybrid.planner", "SOLVERS"),
    "transforms": ("fedhybrid.updates", "TRANSFORMS"),
}


def list_plugins(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of: {', '.join(TABLES)}.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print an array of objects with `name`.")] = False,
) -> None:
    """List what can be named in a recipe or on the command line, one line each.

    Examples:
      fedhybrid list methods
      fedhybrid list models --json
    """
    found = descriptions(table_of(*lookup("kind of list", TABLES, kind)))
    if as_json:
        print_json([{"name": name, "description": text} for name, text in found.items()])
        return
    width = max(map(len, found), default=0)
    for name, text in found.items():
        results().print(f"{name:{width}}  {text}", markup=False, highlight=False, soft_wrap=True)


def table_of(home: str, table_name: str) -> Mapping[str, Any]:
    """The table; empty when this version has no such package yet."""
    if find_spec(home) is None:
        return {}
    table: Mapping[str, Any] = getattr(import_module(home), table_name)
    return table


def descriptions(table: Mapping[str, Any]) -> dict[str, str]:
    """One sentence for each row, names ascending.

    A plug-in that has a file to itself is described by the file's first sentence, one of several in a file by its own
    docstring's, a device by its title.
    """
    homes = Counter(row.__module__ for row in table.values() if not isinstance(row, Path))
    found = {}
    for name, row in sorted(table.items()):
        if isinstance(row, Path):
            from fedhybrid.devices import load_profile

            found[name] = load_profile(row).title
        else:
            alone = homes[row.__module__] == 1
            found[name] = _first_sentence(sys.modules[row.__module__] if alone else row)
    return found


def _first_sentence(documented: object) -> str:
    paragraph = (inspect.getdoc(documented) or "").split("\n\n", maxsplit=1)[0]
    first, stop, _ = " ".join(paragraph.split()).partition(". ")
    return first + stop.strip()
