"""Recipes with another recipe below: what is merged and what replaced, where the base is, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomli_w
from tests.run_parts import small

from fedhybrid.errors import ConfigError
from fedhybrid.experiment import load_config
from fedhybrid.experiment.cells import cells_of
from fedhybrid.experiment.check import variants_of
from fedhybrid.experiment.recipes import read_recipe

OWN_TIERS = [{"name": "own", "budget": "95%", "device": "laptop"}]


def write(path: Path, table: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def below(folder: Path, **changes: Any) -> Path:
    """The recipe below: a whole one."""
    return write(folder / "below.toml", small(**changes))


def above(folder: Path, base: Any = "below.toml", **own: Any) -> Path:
    """The recipe above, which says what is its own."""
    return write(folder / "above.toml", {"base": base, **own})


def refused(recipe: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe)
    (problem,) = caught.value.problems
    return problem


class TestMerging:
    def test_tables_are_merged_and_lists_and_values_replaced(self, tmp_path: Path) -> None:
        below(tmp_path, rounds=3, train={"lr": 0.1, "batch_size": 4})
        recipe = above(tmp_path, rounds=5, train={"lr": 0.2}, fleet={"tiers": OWN_TIERS}, planner={"actions": []})
        expected = small(rounds=5, train={"lr": 0.2, "batch_size": 4}, planner={"actions": []})
        expected["fleet"]["tiers"] = OWN_TIERS
        assert read_recipe(recipe) == expected
        assert load_config(recipe) == load_config(expected)

    def test_new_tables_are_added_and_empty_ones_empty(self, tmp_path: Path) -> None:
        below(tmp_path, failures={"crash": 0.1})
        raw = read_recipe(above(tmp_path, failures={}, evaluation={"every": 2}))
        assert (raw["failures"], raw["evaluation"]) == ({}, {"every": 2})

    def test_a_base_alone_is_the_recipe(self, tmp_path: Path) -> None:
        assert read_recipe(above(tmp_path, base=str(below(tmp_path)))) == small()

    def test_without_a_base_nothing_is_read_or_changed(self) -> None:
        raw = small(compare={"variants": {"a": {"train.lr": 0.1}}})
        assert read_recipe(raw) is raw

    def test_a_base_may_have_one_itself(self, tmp_path: Path) -> None:
        below(tmp_path / "deep", rounds=3, seed=1, train={"lr": 0.1, "batch_size": 4})
        write(tmp_path / "middle.toml", {"base": "deep/below.toml", "rounds": 4, "train": {"lr": 0.2}})
        raw = read_recipe(above(tmp_path / "up", "../middle.toml", train={"lr": 0.3}))
        assert (raw["seed"], raw["rounds"], raw["train"]) == (1, 4, {"lr": 0.3, "batch_size": 4})
        assert "base" not in raw

    def test_options_go_with_their_part(self, tmp_path: Path) -> None:
        below(tmp_path, method="fedprox", method_options={"mu": 0.5}, model_options={"width": 0.25})
        raw = read_recipe(above(tmp_path, method="fedavg"))
        assert "method_options" not in raw
        assert raw["model_options"] == {"width": 0.25}
        again = read_recipe(above(tmp_path, method="fedprox", model="resnet20", model_options={"norm": "group"}))
        assert (again["method_options"], again["model_options"]) == ({"mu": 0.5}, {"norm": "group"})

    def test_one_amount_of_work_takes_the_place_of_another(self, tmp_path: Path) -> None:
        below(tmp_path, train={"epochs": 3})
        train = load_config(above(tmp_path, train={"steps": 7})).train
        assert (train.epochs, train.steps) == (None, 7)

    def test_overrides_win_over_both(self, tmp_path: Path) -> None:
        below(tmp_path, seed=1, rounds=3)
        config = load_config(above(tmp_path, rounds=4), {"rounds": 5})
        assert (config.seed, config.rounds) == (1, 5)


class TestVariants:
    BELOW: ClassVar[dict[str, Any]] = {
        "plain": {},
        "prox": {"method": "fedprox", "method_options": {"mu": 0.5}, "train.lr": 0.3, "train.steps": 2},
    }

    def variants(self, folder: Path, own: dict[str, Any], **compare: Any) -> dict[str, Any]:
        below(folder, compare={"variants": self.BELOW, "targets": [0.5]})
        return variants_of(load_config(above(folder, compare={"variants": own, **compare})))

    def test_stand_beside_those_of_the_base(self, tmp_path: Path) -> None:
        found = self.variants(tmp_path, {"slow": {"train": {"lr": 0.01}}})
        assert list(found) == ["plain", "prox", "slow"]
        assert {label: config.train.lr for label, config in found.items()} == {"plain": 0.05, "prox": 0.3, "slow": 0.01}

    @pytest.mark.parametrize("own", [{"train.lr": 0.2}, {"train": {"lr": 0.2}}])
    def test_of_one_label_are_merged_however_they_are_written(self, tmp_path: Path, own: dict[str, Any]) -> None:
        prox = self.variants(tmp_path, {"prox": own})["prox"]
        assert (prox.method, prox.method_options["mu"], prox.train.lr, prox.train.steps) == ("fedprox", 0.5, 0.2, 2)

    def test_an_empty_one_changes_nothing(self, tmp_path: Path) -> None:
        assert self.variants(tmp_path, {"prox": {}})["prox"].method_options["mu"] == 0.5

    def test_what_another_method_or_amount_takes_the_place_of(self, tmp_path: Path) -> None:
        prox = self.variants(tmp_path, {"prox": {"method": "fedavg", "train.epochs": 2}})["prox"]
        assert (prox.method, prox.method_options, prox.train.epochs, prox.train.steps) == ("fedavg", {}, 2, None)

    def test_labels_may_have_dots(self, tmp_path: Path) -> None:
        found = self.variants(tmp_path, {"mu-0.1": {"method": "fedprox", "method_options": {"mu": 0.1}}})
        assert found["mu-0.1"].method_options["mu"] == 0.1

    def test_effects_may_have_dots_and_stand_beside_those_of_the_base(self, tmp_path: Path) -> None:
        effects = {"mu 0.5 for 0": ["prox", "plain"], "none": ["plain", "prox"]}
        below(tmp_path, compare={"variants": self.BELOW, "effects": effects})
        own = {"mu 0.5 for 0": ["plain", "prox"], "lr 0.1": ["slow", "plain"]}
        raw = {"compare": {"effects": own, "variants": {"slow": {"train.lr": 0.1}}}}
        assert load_config(above(tmp_path, **raw)).compare.effects == effects | own
        assert load_config(above(tmp_path, compare={"effects": own | {"lr 0.1": effects["none"]}})).compare.variants
        assert load_config(above(tmp_path, compare={"effects": {}})).compare.effects == {}

    def test_what_else_is_compared_is_merged_as_all_else(self, tmp_path: Path) -> None:
        self.variants(tmp_path, {"slow": {}}, reference="slow")
        compare = load_config(tmp_path / "above.toml").compare
        assert (compare.targets, compare.reference) == ([0.5], "slow")

    def test_the_grid_is_merged_by_axis(self, tmp_path: Path) -> None:
        fleet = [{"label": name, "fleet.clients_per_round": count} for name, count in (("few", 1), ("many", 4))]
        below(tmp_path, compare={"grid": {"data.alpha": [0.1, 0.5], "fleet": fleet}, "variants": self.BELOW})
        cells = cells_of({"r": above(tmp_path, compare={"grid": {"data.alpha": [9.0], "train.lr": [0.1]}})})
        assert [cell.label for cell in cells] == [f"r, alpha 9.0, {label}, lr 0.1" for label in ("few", "many")]
        assert all(list(cell.variants) == ["plain", "prox"] for cell in cells)

    @pytest.mark.parametrize("own", [{"compare": 5}, {"compare": {"variants": 5}}, {"compare": {"variants": {"a": 5}}}])
    def test_what_is_no_table_is_told(self, tmp_path: Path, own: dict[str, Any]) -> None:
        below(tmp_path, compare={"variants": self.BELOW})
        assert "must be a table, got 5" in refused(above(tmp_path, **own))


class TestPlaces:
    def test_are_seen_from_the_recipes_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        below(tmp_path, seed=8)
        above(tmp_path / "folder", "../below.toml")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert load_config("../folder/above.toml").seed == 8

    def test_of_a_recipe_that_is_no_file_from_the_current_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        below(tmp_path, seed=8, rounds=2)
        monkeypatch.chdir(tmp_path)
        raw = {"base": "below.toml", "rounds": 4}
        config = load_config(raw)
        assert (config.seed, config.rounds, raw["base"]) == (8, 4, "below.toml")

    def test_a_recipe_may_stand_below_several(self, tmp_path: Path) -> None:
        """Only a circle is refused."""
        below(tmp_path)
        other = write(tmp_path / "other.toml", {"base": "below.toml", "rounds": 2})
        assert len(cells_of({"other": other, "above": above(tmp_path)})) == 2


class TestRefused:
    def test_a_circle(self, tmp_path: Path) -> None:
        itself = above(tmp_path, base="above.toml")
        assert refused(itself) == f"recipe {itself} is its own base: above.toml -> above.toml"
        write(tmp_path / "below.toml", {"base": str(tmp_path / "x/../above.toml")})
        (tmp_path / "x").mkdir()
        assert "is its own base: above.toml -> below.toml -> " in refused(above(tmp_path))

    def test_a_circle_below_a_recipe_that_is_no_file(self, tmp_path: Path) -> None:
        assert "above.toml -> above.toml" in refused({"base": str(above(tmp_path, base="above.toml"))})

    def test_a_missing_file_names_who_asked_for_it(self, tmp_path: Path) -> None:
        recipe = above(tmp_path, "none.toml")
        told = "cannot be read: No such file or directory"
        assert refused(recipe) == f"recipe {tmp_path / 'none.toml'}, the base of {recipe}, {told}"
        assert "Is a directory" in refused(above(tmp_path, "."))
        none = tmp_path / "none.toml"
        assert refused({"base": str(none)}) == f"recipe {none} {told}"

    @pytest.mark.parametrize("text", [b"a = = 1", b"a = '\xff'"])
    def test_a_file_that_is_no_toml(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / "below.toml").write_bytes(text)
        recipe = above(tmp_path)
        assert f"recipe {tmp_path / 'below.toml'}, the base of {recipe}, is not TOML: " in refused(recipe)

    def test_links_that_lead_nowhere(self, tmp_path: Path) -> None:
        for name, other in (("below.toml", "x.toml"), ("x.toml", "below.toml")):
            (tmp_path / name).symlink_to(tmp_path / other)
        recipe = above(tmp_path)
        assert f"below.toml, the base of {recipe}, cannot be read: Too many levels" in refused(recipe)

    @pytest.mark.parametrize("base", [3, True, "a\0b", ["below.toml"], {"path": "below.toml"}])
    def test_what_is_no_path(self, tmp_path: Path, base: Any) -> None:
        assert refused(above(tmp_path, base)) == f"base must be the path of another recipe, got {base!r}"

    def test_a_variant_has_none(self, tmp_path: Path) -> None:
        below(tmp_path)
        assert "unknown key base" in refused(above(tmp_path, compare={"variants": {"a": {"base": "below.toml"}}}))

    def test_what_is_wrong_below_is_told(self, tmp_path: Path) -> None:
        below(tmp_path, rounds="many")
        assert "rounds: must be a valid integer, got 'many'" in refused(above(tmp_path))
        assert load_config(above(tmp_path, rounds=2)).rounds == 2

    def test_a_path_through_what_is_no_table(self, tmp_path: Path) -> None:
        below(tmp_path, train=5)
        assert refused(above(tmp_path, train={"lr": 0.1})) == "train.lr cannot be set: train is no table"
