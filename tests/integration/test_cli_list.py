"""`fedhybrid list`, and the command line as a whole."""

from __future__ import annotations

import inspect
import json
import re
import shlex

import pytest
from tests.command_lines import commands, parse
from tests.integration.cli_runner import assert_refused, fedhybrid, fedhybrid_process

from fedhybrid import __version__
from fedhybrid.cli.listing import TABLES, table_of

COMMANDS = commands()


@pytest.mark.parametrize("kind", sorted(TABLES))
class TestEveryKind:
    def test_json_is_an_array_of_the_tables_names(self, kind: str) -> None:
        ran = fedhybrid("list", kind, "--json")
        rows = json.loads(ran.out)
        assert ran.code == 0
        assert [row["name"] for row in rows] == sorted(table_of(*TABLES[kind]))
        assert all(row["description"] for row in rows)

    def test_text_is_a_line_a_name(self, kind: str) -> None:
        ran = fedhybrid("list", kind)
        assert ran.code == 0
        assert [line.split()[0] for line in ran.out.splitlines()] == sorted(table_of(*TABLES[kind]))


def test_unknown_kind_offers_the_nearest() -> None:
    assert_refused(fedhybrid("list", "polices"), "Did you mean 'policies'?")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_teaches_with_examples_that_parse(command: str) -> None:
    ran = fedhybrid(*command.split(), "--help")
    assert ran.code == 0
    lines = [line.strip() for line in ran.out.splitlines()]
    assert "Examples:" in lines
    text = inspect.getdoc(COMMANDS[command].callback) or ""
    examples = [shlex.split(line) for line in text.splitlines() if line.startswith("  fedhybrid ")]
    assert examples
    for _, *words in examples:
        parse(words)


def test_help_names_every_command_and_the_exit_codes() -> None:
    ran = fedhybrid_process("--help")
    assert ran.code == 0
    words = {command.split()[0] for command in COMMANDS}
    assert all(re.search(rf"^\W+{word} +\w", ran.out, flags=re.MULTILINE) for word in words)
    assert "Exit codes: 0 done, 2 bad input, 3 no plan fits the budget, 1 anything else." in ran.out


def test_version() -> None:
    assert fedhybrid("--version").out.strip() == f"fedhybrid {__version__}"


def test_unknown_option_is_bad_input() -> None:
    ran = fedhybrid("list", "models", "--jsn")
    assert ran.code == 2
    assert "--jsn" in ran.err
