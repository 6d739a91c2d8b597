"""One page of several comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.comparison_parts import describe, place, write_curve
from typer.testing import CliRunner

from fedhybrid.cli.app import app
from fedhybrid.errors import ConfigError
from fedhybrid.report.comparison import load_comparison, write_comparison

GAINS = {"har, speed": 0.1, "har, data": 0.3}


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    folders = []
    for cell, gain in GAINS.items():
        folder = describe(tmp_path / cell.replace(", ", "-"), {cell: ["exclusion", "plans"]}, reference="exclusion")
        for seed in (1, 2):
            write_curve(place(folder, cell, seed, "exclusion"), [(1.0, 0.4), (2.0, 0.5)], seed=seed)
            write_curve(place(folder, cell, seed, "plans"), [(1.0, 0.4), (2.0, 0.5 + gain)], seed=seed)
        folders.append(folder)
    return folders


def test_all_cells_are_in_all_tables(two: list[Path], tmp_path: Path) -> None:
    written = write_comparison(*two, out=tmp_path / "new" / "both")
    assert written.page.parent == tmp_path / "new" / "both"
    text = written.text.read_text()
    assert "| plans | 2 |" in text
    assert "+20.0 (+10.0 to +30.0)" in text
    assert all(f"## {cell}" in text for cell in GAINS)
    assert "on average over 2 cells" in written.page.read_text()
    assert not (two[0] / "comparison.html").exists(), "the comparisons' own folders stay as they are"


def test_it_has_to_lie_somewhere_and_labels_must_differ(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one page of 2 comparisons needs a folder of its own: give --out"):
        write_comparison(*two)
    with pytest.raises(ConfigError, match="several have the cell 'har, speed'"):
        write_comparison(two[0], two[0], out=tmp_path / "both")


def test_it_takes_no_folder_that_has_a_page_of_its_own(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    for out in (two[0], tmp_path / "run"):
        with pytest.raises(ConfigError, match="holds runs, which have a page of their own; give another folder"):
            write_comparison(*two, out=out)
        assert not (out / "comparison.html").exists()
    assert write_comparison(two[0], out=two[0]).page.parent == two[0]
    with pytest.raises(ConfigError, match="there is no comparison to write a page of"):
        write_comparison(out=tmp_path / "none")


def test_seeds_are_later_only_where_they_were(two: list[Path], tmp_path: Path) -> None:
    path = two[1] / "comparison.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"first_seeds": 1}))
    text = write_comparison(*two, out=tmp_path / "both").text.read_text()
    assert "Seed 2 was added later in 1 of 2 cells." in text


def test_one_alone_is_as_it_was(two: list[Path]) -> None:
    assert write_comparison(two[0]).page == two[0] / "comparison.html"
    assert load_comparison(two[0]).cells[0].label == "har, speed"


def test_on_the_command_line(two: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", *map(str, two), "--out", str(tmp_path / "both")])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "both" / "comparison.html") in done.output
    (tmp_path / "run").mkdir()
    refused = CliRunner().invoke(app, ["report", str(two[0]), str(tmp_path / "run"), "--out", str(tmp_path / "both")])
    assert refused.exit_code == 2
    assert "is not the folder of a comparison; --out and several folders are for these" in refused.output
