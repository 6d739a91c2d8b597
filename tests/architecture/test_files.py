"""Files stay small enough to read in one sitting."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("src", "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "ask what its second subject is"


def test_every_module_opens_with_a_docstring_and_says_what_it_exports() -> None:
    lacking = []
    for path in (ROOT / "src").rglob("*.py"):
        code = [line for line in path.read_text().splitlines() if line and not line.startswith("# ruff:")]
        if not code or not code[0].startswith('"""'):
            lacking.append(f"{path.relative_to(ROOT)}: no docstring")
        elif path.name != "__main__.py" and not any(
            line.startswith(("__all__ = [", "__all__: list[str] = []")) for line in code
        ):
            lacking.append(f"{path.relative_to(ROOT)}: no __all__")
    assert lacking == []
