"""CONTRIBUTING names every module that reads a real clock."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLOCK = re.compile(r"\b(perf_counter|monotonic|process_time|time\.time|datetime\.now)\b")


def test_modules_that_read_a_clock_are_those_that_contributing_names() -> None:
    package = ROOT / "src" / "fedhybrid"
    reading = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if CLOCK.search(path.read_text())}
    (sentence,) = re.findall(
        r"A real\s+clock is\s+read only .*?\n- ", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    named = set(re.findall(r"`(\S+\.py)`", sentence))
    assert named == {path for path in reading if not path.startswith("cli/")}
