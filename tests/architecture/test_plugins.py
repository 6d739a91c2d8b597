"""Every row of every table of plug-ins explains itself and goes through a contract suite."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from fedhybrid.cli.listing import TABLES, descriptions, table_of

ROOT = Path(__file__).parents[2]
ROWS = [(kind, name) for kind, home in TABLES.items() for name in sorted(table_of(*home))]


@cache
def contract_tests() -> tuple[tuple[str, str], ...]:
    """(file, parameters) of every parametrised test in tests/contract."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow", "tests/contract"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return tuple(re.findall(r"^(tests/contract/\S+?\.py)::.*\[(.*)\]$", done.stdout, flags=re.MULTILINE))


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_row_says_what_it_is(kind: str, name: str) -> None:
    table = table_of(*TABLES[kind])
    assert len(descriptions(table)[name].split()) >= 3
    row = table[name]
    if not isinstance(row, Path):
        assert_own_docstring(row)


def assert_own_docstring(row: type | Callable[..., object]) -> None:
    own = vars(row).get("__doc__") if isinstance(row, type) else inspect.getdoc(row)
    assert own, f"{row} has no docstring of its own"
    assert not own.startswith(f"{row.__name__}("), f"{row}: that is the docstring that dataclass makes up"


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_row_is_tested_by_a_contract_suite(kind: str, name: str) -> None:
    table_name = TABLES[kind][1]
    suites = walking(table_name)
    assert suites, f"no file of tests/contract walks {table_name}"
    among = re.compile(rf"(^|-){re.escape(name)}(-|$)")
    assert any(among.search(parameters) for file, parameters in contract_tests() if file in suites)


@cache
def walking(table_name: str) -> frozenset[str]:
    """Files of tests/contract that name the table."""
    files = {file for file, _ in contract_tests()}
    return frozenset(file for file in files if re.search(rf"\b{table_name}\b", (ROOT / file).read_text()))


def test_every_kind_but_codecs_has_rows() -> None:
    assert {kind for kind, _ in ROWS} >= set(TABLES) - {"codecs"}
