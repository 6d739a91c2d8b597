"""The commands in one program, and the only place where an exception becomes a message and an exit code."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import click
import typer
from rich.markup import escape
from typer.core import TyperGroup

from fedhybrid import __version__
from fedhybrid.cli.bench import bench
from fedhybrid.cli.compare import compare
from fedhybrid.cli.doctor import doctor
from fedhybrid.cli.explain import explain
from fedhybrid.cli.flower import FLOWER_COMMANDS
from fedhybrid.cli.listing import list_plugins
from fedhybrid.cli.pareto import pareto
from fedhybrid.cli.plan import plan
from fedhybrid.cli.report import report
from fedhybrid.cli.run import run
from fedhybrid.errors import ConfigError, FedHybridError, InfeasibleBudgetError

__all__ = ["app", "main"]

BAD_INPUT, INFEASIBLE, FAILED = 2, 3, 1


class _Commands(TyperGroup):
    """Ends every command with the exit code that its error stands for; click's own errors pass through."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("FEDHYBRID_DEBUG"):
                traceback.print_exc(file=sys.stderr)
            for line in problem_lines(error):
                typer.echo(line, err=True)
            raise typer.Exit(exit_code(error)) from error


def exit_code(error: Exception) -> int:
    """3 for a budget that no plan fits, 2 for what the user gave, 1 for the rest.

    >>> exit_code(ConfigError("rounds must be at least 1")), exit_code(OSError("disk full"))
    (2, 1)
    """
    if isinstance(error, InfeasibleBudgetError):
        return INFEASIBLE
    return BAD_INPUT if isinstance(error, FedHybridError) else FAILED


def problem_lines(error: Exception) -> list[str]:
    """One line for each problem, without line breaks inside.

    >>> problem_lines(ConfigError(["rounds must be at least 1", "unknown key 'sed'"]))
    ['error: rounds must be at least 1', "error: unknown key 'sed'"]
    """
    if isinstance(error, ConfigError):
        return [f"error: {' '.join(problem.split())}" for problem in error.problems]
    text = " ".join(str(error).split())
    if isinstance(error, FedHybridError):
        return [f"error: {text}"]
    hint = "Set FEDHYBRID_DEBUG=1 to see where it comes from."
    return [f"error: {type(error).__name__}: {text or 'no message'} ({hint})"]


def help_of(command: Callable[..., None]) -> str:
    """The command's docstring, square brackets meant literally, line breaks kept where lines are indented.

    A backspace before a paragraph is click's mark for keeping its lines.
    """
    paragraphs = escape(inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join("\b\n" + text if "\n  " in text else " ".join(text.split()) for text in paragraphs)


app = typer.Typer(
    cls=_Commands,
    help=(
        "Makes training fit: PyTorch steps inside a byte budget, alone or in a federation of unequal devices.\n\n"
        "\b\nStart with\n"
        "  fedhybrid doctor\n"
        "  fedhybrid plan resnet20 --batch 32 --input 3x32x32 --budget 40% --measure\n"
        "  fedhybrid run recipes/quickstart.toml --out runs/first\n\n"
        "Exit codes: 0 done, 2 bad input, 3 no plan fits the budget, 1 anything else."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "compare": compare,
    "plan": plan,
    "pareto": pareto,
    "explain": explain,
    "report": report,
    "list": list_plugins,
    "bench": bench,
    "doctor": doctor,
}
for _name, _command in COMMANDS.items():
    app.command(_name, help=help_of(_command))(_command)
_flower = typer.Typer(
    help="The same recipes on Flower: simulate on one or several machines; keys, serve and join for real devices.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
for _name, _command in FLOWER_COMMANDS.items():
    _flower.command(_name, help=help_of(_command))(_command)
app.add_typer(_flower, name="flower")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedhybrid {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command in `sys.argv` and leaves with its exit code."""
    app()
