"""Runs a command line, in this process (quick) or in one of its own (where purity of standard output matters)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from fedhybrid.cli.app import app


@dataclass(frozen=True, kw_only=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def fedhybrid(*arguments: str | Path, env: dict[str, str] | None = None) -> Ran:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"FEDHYBRID_DEBUG": "", **(env or {})})
    return Ran(code=result.exit_code, out=result.stdout, err=result.stderr)


def fedhybrid_process(*arguments: str | Path, cwd: Path | None = None) -> Ran:
    command = [sys.executable, "-m", "fedhybrid", *(str(a) for a in arguments)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # so that tests side by side do not wait for each other
    done = subprocess.run(command, cwd=cwd, env=one_thread, capture_output=True, text=True, check=False, timeout=250)
    return Ran(code=done.returncode, out=done.stdout, err=done.stderr)


def assert_refused(ran: Ran, *expected: str, code: int = 2) -> None:
    """Nothing on standard output, no traceback, and among the error lines one for each expected text."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert "Traceback" not in ran.err
    for text in expected:
        assert any(text in line for line in ran.errors), (text, ran.err)
