"""The program's commands as people write them, and whether such a line parses; nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import click
import typer

from fedhybrid.cli.app import app

__all__ = ["command_lines", "commands", "parse"]


def commands() -> dict[str, click.Command]:
    """Every command that does something, by its words: "run", "flower join"."""
    return dict(_below(typer.main.get_command(app)))


def parse(words: Sequence[str]) -> click.Context:
    """Resolves the words after `fedhybrid`: the command and every option; what is wrong raises `click.UsageError`."""
    command: click.Command = typer.main.get_command(app)
    rest, parent = list(words), None
    while isinstance(command, click.Group):
        parent = click.Context(command, info_name=command.name, parent=parent)
        _, found, rest = command.resolve_command(parent, rest)
        assert found is not None
        command = found
    return command.make_context(command.name or "", rest, parent=parent)


def command_lines(text: str) -> list[list[str]]:
    """The words after `fedhybrid` of each line of a document's code blocks that calls it."""
    found = []
    for block in re.findall(r"^```(?:sh|console|ini|text)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            called = re.match(r"(?:\$ |ExecStart=)?(?:\S*/)?fedhybrid (?=[a-z])(.*)", line)
            if called is not None:
                found.append(shlex.split(called[1], comments=True))
    return found


def _below(command: click.Command, *path: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(" ".join(path), command)]
    return [pair for name, below in command.commands.items() for pair in _below(below, *path, name)]
