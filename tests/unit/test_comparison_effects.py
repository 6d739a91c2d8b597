"""Effects apart: pairs of variants over all cells against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import astuple, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from tests.unit.comparison_parts import describe, place, write_curve

from fedhybrid.errors import ConfigError
from fedhybrid.experiment import load_config
from fedhybrid.experiment.cells import cells_of
from fedhybrid.experiment.fixing import check_place, described, store
from fedhybrid.report.comparison import load_comparison, write_comparison
from fedhybrid.report.comparison.effects import effects
from fedhybrid.report.comparison.figures import DRAWINGS, Scene
from fedhybrid.report.comparison.measuring import measure_cell
from fedhybrid.report.comparison.overall import Counts
from fedhybrid.report.comparison.sentences import made
from fedhybrid.report.comparison.table import effects_table
from fedhybrid.report.comparison.timing import rank_means
from fedhybrid.report.figures import LIGHT, themed

EFFECTS = {"plans": ["plans", "exclusion"], "selection": ["both", "plans"], "nobody": ["both", "absent"]}
CELLS = ["r, alpha 0.1", "r, alpha 0.5"]
# (virtual seconds, accuracy) of each test, the same with both seeds; in the second cell all are twice as slow.
CURVES = {
    "exclusion": [(1.0, 0.4), (2.0, 0.5), (4.0, 0.6)],
    "plans": [(3.0, 0.5), (6.0, 0.8), (8.0, 0.7)],
    "both": [(1.0, 0.5), (3.0, 0.8), (4.0, 0.9)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variants = [*CURVES, "absent"]
    found = describe(tmp_path_factory.mktemp("effects"), dict.fromkeys(CELLS, variants), effects=EFFECTS)
    for number, cell in enumerate(CELLS, start=1):
        for seed in (1, 2):
            for variant, curve in CURVES.items():
                slower = [(number * time_s, accuracy) for time_s, accuracy in curve]
                policy = "exclusion" if variant == "exclusion" else "fedhybrid"
                write_curve(place(found, cell, seed, variant), slower, seed=seed, policy=policy, failing=0.0)
    return found


def test_numbers_by_hand(folder: Path) -> None:
    found = effects(load_comparison(folder).cells)
    assert [each.label for each in found] == ["plans", "selection"], "the third has no runs"
    plans, selection = found
    assert (plans.variant, plans.against, plans.cells, plans.runs, plans.missing) == ("plans", "exclusion", 2, 4, 0)
    assert plans.difference is not None
    assert astuple(plans.difference) == pytest.approx((0.1, 0.1, 0.1, 2))
    assert (plans.above, plans.below, plans.intervals) == (2, 0, 2)
    # Targets 0.5 and 0.8: exclusion takes 2 s to the first, plans 3 s; only plans reach the second.
    assert plans.counts == Counts(both=4, alone=4, missed=0)
    assert plans.speed_up is not None
    assert plans.speed_up.mean == pytest.approx(2 / 3)
    assert plans.time_ratio is not None
    assert plans.time_ratio.mean == pytest.approx(2.0)
    assert plans.same_ratio is not None
    assert plans.same_ratio.mean < 1
    assert selection.speed_up is not None
    assert selection.speed_up.mean == pytest.approx(math.sqrt(3 * 2))


def test_equal_participation_is_seen_in_the_records(folder: Path) -> None:
    same = effects(load_comparison(folder).cells)[1].same_ratio
    assert same is not None
    assert astuple(same) == (1.0, 1.0, 1.0, 2)


def test_cells_with_other_devices_are_not_hidden_in_the_mean(folder: Path, tmp_path: Path) -> None:
    """Other devices in one cell and one of its six rounds: 11 of 12, and the cells' own shares."""
    copytree(folder, tmp_path / "c")
    path = place(tmp_path / "c", CELLS[1], 1, "both") / "rounds.jsonl"
    first, *others = path.read_text().splitlines()
    changed = json.loads(first)
    changed["cohort"] = [each + 1 for each in changed["cohort"]]
    path.write_text("\n".join([json.dumps(changed), *others]) + "\n")
    cells = load_comparison(tmp_path / "c").cells
    same = effects(cells)[1].same_ratio
    assert same is not None
    assert (same.mean, same.low, same.high) == pytest.approx((11 / 12, 5 / 6, 1.0))
    assert effects_table(effects(cells)).rows[1][2].replace("\u00a0", " ") == "91 % (83 % to 100 %)"


def test_pairs_that_miss_runs_say_so(folder: Path, tmp_path: Path) -> None:
    copytree(folder, tmp_path / "c")
    (place(tmp_path / "c", CELLS[1], 2, "plans") / "summary.json").unlink()
    rows = [row[0] for row in effects_table(effects(load_comparison(tmp_path / "c").cells)).rows]
    assert rows == ["plans (3 of 4 runs)", "selection (3 of 4 runs)"]


def test_one_label_may_mean_other_variants_in_other_recipes(tmp_path: Path) -> None:
    folders = []
    for name, pair in (("one", ["plans", "exclusion"]), ("two", ["both", "plans"])):
        folders.append(describe(tmp_path / name, {name: list(CURVES)}, seeds=[1], effects={"plans": pair}))
        for variant, curve in CURVES.items():
            write_curve(place(folders[-1], name, 1, variant), curve, seed=1)
    write_comparison(*folders, out=tmp_path / "both")
    found = json.loads((tmp_path / "both" / "table.json").read_text())["effects"]
    assert [(each["variant"], each["against"]) for each in found] == [("plans", "exclusion"), ("both", "plans")]


def test_page_text_and_numbers_have_them(folder: Path) -> None:
    written = write_comparison(folder)
    assert "Effects apart" in written.page.read_text()
    row = next(line for line in written.text.read_text().splitlines() if line.startswith("| selection |"))
    assert "| selection | 2 | 100 % |" in row.replace("\u00a0", " ")
    assert row.endswith("| both / plans |")
    assert "+20.0 (+20.0 to +20.0)" in row
    numbers = json.loads((folder / "table.json").read_text())
    assert numbers["effects"][0]["against"] == "exclusion"


def test_a_comparison_without_effects_shows_none(tmp_path: Path) -> None:
    describe(tmp_path, {"r": ["exclusion"]}, seeds=[1])
    write_curve(place(tmp_path, "r", 1, "exclusion"), CURVES["exclusion"], seed=1)
    assert "Effects apart" not in write_comparison(tmp_path).page.read_text()


RECIPE: dict[str, Any] = {
    "method": "fedavg",
    "policy": "uniform",
    "model": "cnn",
    "dataset": "digits",
    "compare": {"variants": {"one": {}, "two": {"policy": "exclusion"}}, "effects": {"exclusion": ["two", "one"]}},
}


def test_a_recipe_names_them_and_comparison_json_keeps_them() -> None:
    cells = cells_of({"r": RECIPE})
    assert cells[0].effects == {"exclusion": ("two", "one")}
    assert described(cells, 1)["cells"][0]["effects"] == {"exclusion": ["two", "one"]}


def test_effects_may_be_named_when_all_runs_are_over(tmp_path: Path) -> None:
    before = described(cells_of({"r": RECIPE}), 2)
    store(tmp_path, before, running=True)
    named = {"compare.effects": {"other": ["one", "two"]}}
    after = described(cells_of({"r": RECIPE}, named), 2)
    check_place(tmp_path, after)
    store(tmp_path, after, running=False)
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert stored["cells"][0].pop("effects") == {"exclusion": ["two", "one"], "other": ["one", "two"]}
    assert before["cells"][0].pop("effects")
    assert stored == json.loads(json.dumps(before)), "nothing else has changed"


def test_variants_may_be_added_and_are_named(tmp_path: Path) -> None:
    before = described(cells_of({"r": RECIPE}), 1)
    store(tmp_path, before, running=True)
    third = {"compare.variants.three": {"method": "fedprox"}, "compare.apart": ["three"]}
    for seeds in (1, 2):
        after = described(cells_of({"r": RECIPE}, third), seeds)
        check_place(tmp_path, after)
        store(tmp_path, after, running=True)
        (cell,) = json.loads((tmp_path / "comparison.json").read_text())["cells"]
        assert cell.pop("added") == ["three"]
        assert cell == json.loads(json.dumps(after["cells"][0]))
    made_words = made(load_comparison(tmp_path))
    assert "the first seeds and configurations of all other variants were written to comparison.json" in made_words
    assert made_words.count("added later") == 2
    assert "Variant three was added later." in made_words
    with pytest.raises(ConfigError, match=r"variants was .*\(only seeds and variants may be added\)"):
        check_place(tmp_path, before | {"seeds": 2})


@pytest.mark.parametrize(
    "change",
    [
        {"compare.variants.one": {"train.lr": 0.5}},
        {"compare.apart": ["two", "three"]},
        {"train.lr": 0.5},
        {"compare.targets": [0.9]},
        {"compare.reference": "three"},
    ],
)
def test_with_a_new_variant_nothing_else_may_change(change: dict[str, Any], tmp_path: Path) -> None:
    store(tmp_path, described(cells_of({"r": RECIPE}), 1), running=True)
    after = described(cells_of({"r": RECIPE}, {"compare.variants.three": {"method": "fedprox"}, **change}), 1)
    with pytest.raises(ConfigError, match="holds another comparison"):
        check_place(tmp_path, after)


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        (["two", "three"], "compare: effects.exclusion must name one of the variants (one, two), got 'three'"),
        (["two"], "compare.effects.exclusion: must be two variants, got ['two']"),
    ],
)
def test_pairs_are_two_variants(pair: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RECIPE, {"compare.effects.exclusion": pair})
    assert caught.value.problems == (problem,)


def test_variants_apart_have_no_place_and_are_in_no_headline(tmp_path: Path) -> None:
    describe(tmp_path, {"r": list(CURVES)}, targets=[0.5], reference="exclusion", apart=["both"])
    for seed in (1, 2):
        for variant, curve in CURVES.items():
            write_curve(place(tmp_path, "r", seed, variant), curve, seed=seed)
    cell = load_comparison(tmp_path).cells[0]
    assert rank_means(cell, 0.5) == {"exclusion": 1.0, "plans": 2.0}
    assert write_comparison(tmp_path).page.read_text().count("<h1>plans ends 10.0 points above exclusion") == 1
    scenes = [Scene(cell=cell, result=measure_cell(cell))]
    with themed(LIGHT):
        figure = DRAWINGS["accuracy"].draw(scenes, LIGHT)
        assert figure is not None
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["exclusion", "plans"]
        alone = replace(cell, runs={"both": cell.runs["both"]})
        assert DRAWINGS["accuracy"].draw([Scene(cell=alone, result=measure_cell(alone))], LIGHT) is None


def test_what_is_apart_is_fixed_with_the_rest() -> None:
    apart = load_config(RECIPE, {"compare.apart": ["two"]}).compare.apart
    assert apart == ["two"]
    with pytest.raises(ConfigError, match=r"apart must name one of the variants \(one, two\), got 'three'"):
        load_config(RECIPE, {"compare.apart": ["three"]})
    assert described(cells_of({"r": RECIPE}, {"compare.apart": ["two"]}), 1)["cells"][0]["apart"] == ["two"]


def test_what_json_has_no_number_for_is_named(tmp_path: Path) -> None:
    recipe = {**RECIPE, "planner": {"max_gradient_error": math.inf, "actions": ["recompute", "encode"]}}
    grid = {"compare.grid": {"planner.max_gradient_error": [0.1, math.inf]}}
    wanted = described(cells_of({"r": recipe}, grid), 1)
    store(tmp_path, wanted, running=True)

    def no_number(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    stored = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=no_number)
    assert stored["cells"][1]["variants"]["one"]["planner"]["max_gradient_error"] == "inf"
    assert "inf" in json.dumps(stored["cells"][1]["settings"])
    check_place(tmp_path, described(cells_of({"r": recipe}, grid), 1))
    old = (tmp_path / "comparison.json").read_text().replace('"inf"', "Infinity")
    (tmp_path / "comparison.json").write_text(old)
    check_place(tmp_path, described(cells_of({"r": recipe}, grid), 2))
