"""The README's Python compiles and runs, its commands exist, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.command_lines import command_lines, commands, parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_compile() -> None:
    assert BLOCKS
    for number, block in enumerate(BLOCKS):
        compile(block, f"README block {number}", "exec")


@pytest.mark.slow
def test_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[0], "README block 0", "exec"), {})
    found = re.search(r"peak (\d+) of eager's (\d+) bytes", capsys.readouterr().out)
    assert found is not None
    assert int(found[1]) < int(found[2])


def test_commands_exist() -> None:
    known = commands()
    named = set(re.findall(r"\bfedhybrid ([a-z]+)\b(?= [A-Z\[-]|`| [a-z0-9_/]+ )", README)) - {"flower"}
    below = set(re.findall(r"\bfedhybrid (flower [a-z]+)\b", README))
    assert named
    assert below == {name for name in known if name.startswith("flower ")}
    assert named <= set(known)


def test_command_lines_parse() -> None:
    lines = command_lines(README)
    assert lines
    for words in lines:
        parse(words)


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
