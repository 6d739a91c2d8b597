"""What the command line says when something breaks that nobody foresaw."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.cli_runner import Ran, assert_refused, fedhybrid


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "broken_nets.py").write_text(
        "from torch import nn\n"
        "class Make(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(64, 10)\n"
        "    def train(self, mode=True):\n"
        "        raise RuntimeError('out of paint')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "broken_nets:Make"


def plan(model: str, **env: str) -> Ran:
    return fedhybrid("plan", model, "--batch", "2", "--input", "1x8x8", "--budget", "50%", env=env)


def test_one_line_and_a_hint(broken: str) -> None:
    ran = plan(broken)
    assert_refused(ran, "RuntimeError: out of paint", code=1)
    assert "FEDHYBRID_DEBUG=1" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_debug_shows_where_it_comes_from(broken: str) -> None:
    ran = plan(broken, FEDHYBRID_DEBUG="1")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "broken_nets.py" in ran.err
