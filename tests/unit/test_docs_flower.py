"""docs/flower.md: every command in it parses, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from tests.command_lines import command_lines, commands, parse

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "flower.md").read_text(encoding="utf-8")
LINES = command_lines(TEXT)


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    parse(words)


def test_every_subcommand_is_shown() -> None:
    shown = {" ".join(words[:2]) for words in LINES if words[0] == "flower"}
    assert shown == {name for name in commands() if name.startswith("flower ")}


def test_options_named_in_the_text_exist() -> None:
    known = {option for name, command in commands().items() if name.startswith("flower ")
             for parameter in command.params for option in parameter.opts}  # fmt: skip
    named = set(re.findall(r"`(--[a-z-]+)[^`]*`", TEXT)) - {"--node-config"}  # Flower's own
    assert named
    assert named <= known


def test_a_wrong_option_or_command_would_be_noticed() -> None:
    (join,) = command_lines("```sh\n.venv/bin/fedhybrid flower join HOST:1 --kee pi.key  # a comment\n```\n")
    assert join == ["flower", "join", "HOST:1", "--kee", "pi.key"]
    with pytest.raises(click.UsageError):
        parse(join)
    with pytest.raises(click.UsageError):
        parse(["flower", "jion", "HOST:1"])


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert targets
    assert [target for target in targets if not (DOCS / target.partition("#")[0]).exists()] == []


def test_is_short_enough_to_be_read() -> None:
    assert len(TEXT.splitlines()) < 250
