"""docs/methods.md: its table has every method, its TOML loads, its commands parse, its own method trains."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.command_lines import command_lines, parse
from tests.run_parts import small

import fedhybrid as fh
from fedhybrid.experiment.check import load_config
from fedhybrid.experiment.recipes import read_recipe
from fedhybrid.methods import METHODS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
LINES = command_lines(TEXT)
SETTINGS = re.findall(r"^```toml\n# (\S+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
CODE = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    tables = {name: merged(below[name], value) for name, value in above.items()
              if isinstance(value, dict) and name in below}  # fmt: skip
    return {**below, **above, **tables}


def test_every_method_has_its_line() -> None:
    named = re.findall(r"^\| `([a-z-]+)` \[", TEXT, flags=re.MULTILINE)
    assert sorted(named) == sorted(METHODS)


@pytest.mark.parametrize(("recipe", "settings"), SETTINGS)
def test_settings_load(recipe: str, settings: str) -> None:
    """In the recipe that they name, without its variants."""
    given = dict(read_recipe(ROOT / recipe))
    given.pop("compare", None)
    load_config(merged(given, tomllib.loads(settings)))


def test_all_toml_names_its_recipe() -> None:
    assert len(SETTINGS) == TEXT.count("```toml") > 5


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    parse(words)


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert targets
    files = [target.partition("#")[0] for target in targets]
    assert [file for file in files if not (ROOT / "docs" / file).exists()] == []


def test_the_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = CODE
    (tmp_path / "own_docs_method.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    tiers = [{"name": n, "budget": b, "device": "laptop"} for n, b in (("weak", "90%"), ("strong", "100%"))]
    recipe = small(method="own_docs_method:LastLayer", rounds=1, train={"steps": 2, "batch_size": 8},
                   data={"clients": 4}, fleet={"clients_per_round": 4, "tiers": tiers})  # fmt: skip
    tasks = fh.run(recipe, out=tmp_path / "run").clients
    sent = {task.submodel: task.bytes_up for task in tasks}
    assert {(task.tier, task.submodel) for task in tasks} == {("weak", "last"), ("strong", "")}
    assert 0 < sent["last"] < sent[""]
