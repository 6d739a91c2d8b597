"""Where commands write: results to standard output, everything said on the way to standard error."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

__all__ = ["notes", "print_json", "results", "stage"]


def results() -> Console:
    """The console of results (standard output)."""
    return Console(soft_wrap=False)


def notes() -> Console:
    """The console of progress and notes (standard error)."""
    return Console(stderr=True)


def print_json(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Prints one JSON value, and nothing else, to standard output."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


@contextmanager
def stage(console: Console, what: str) -> Iterator[None]:
    """Shows that `what` is going on and how long it took; silent where the console is no terminal."""
    if not console.is_terminal:
        yield
        return
    start_s = time.perf_counter()
    with console.status(f"{what} ..."):
        yield
    console.print(f"[dim]{what}: {time.perf_counter() - start_s:.1f} s[/dim]", highlight=False)
