"""docs/federations.md and docs/headline.md: commands parse, links lead somewhere, TOML is a recipe's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from tests.command_lines import command_lines, parse
from tests.run_parts import small

from fedhybrid.experiment import load_config
from fedhybrid.experiment.config import RunConfig
from fedhybrid.selection import PlannedUtility

ROOT = Path(__file__).parents[2]
TEXTS = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("federations.md", "headline.md")}
FEDERATIONS = TEXTS["federations.md"]
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", FEDERATIONS, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", TEXTS)
def test_commands_parse_and_links_lead_somewhere(name: str) -> None:
    lines = command_lines(TEXTS[name])
    assert lines
    for words in lines:
        parse(words)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]) if "://" not in target]
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


@pytest.mark.parametrize("text", BLOCKS, ids=lambda text: text.split("]")[0].strip("[").splitlines()[0])
def test_settings_are_a_recipes(text: str, tmp_path: Path) -> None:
    table = tomllib.loads(text)
    if "base" in table:
        (tmp_path / "it.toml").write_text(text.replace('base = "', f'base = "{ROOT}/'), encoding="utf-8")
        config = load_config(tmp_path / "it.toml")
        assert (config.rounds, config.train.lr, config.dataset) == (table["rounds"], table["train"]["lr"], "uci-har")
    else:
        RunConfig.model_validate(small() | table)


def test_options_of_planned_utility_have_their_defaults() -> None:
    section = FEDERATIONS.partition("## Selection")[2].partition("\n## ")[0]
    named = {name: float(value) for name, value in re.findall(r"^\| `([a-z_]+)` \| ([\d.]+) \|", section, re.MULTILINE)}
    assert named == {name: float(value) for name, value in vars(PlannedUtility()).items()}
