"""Cells of a comparison: all points of a grid, who wins over whom, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.run_parts import small

from fedhybrid.errors import ConfigError
from fedhybrid.experiment.cells import Cell, cells_of
from fedhybrid.experiment.check import load_config
from fedhybrid.experiment.comparing import runs_of

TWO = {"plain": {"method": "fedavg"}, "prox": {"method": "fedprox"}}
WEAK = [{"name": "all", "budget": "85%", "device": "raspberry-pi-4"}]
MORE = [{"name": "more", "budget": "95%", "device": "laptop"}]
STRONG = [{"name": "all", "budget": "100%", "device": "laptop"}]


def compared(grid: dict[str, Any] | None = None, variants: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return small(
        compare={"variants": TWO if variants is None else variants, **({"grid": grid} if grid else {}), **more}
    )


def cells(raw: Any, **overrides: Any) -> list[Cell]:
    return cells_of({"r": raw}, {key.replace("__", "."): value for key, value in overrides.items()})


def refused(raw: Any, **overrides: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        cells(raw, **overrides)
    return list(caught.value.problems)


class TestGrid:
    def test_all_combinations_in_order(self) -> None:
        found = cells(compared({"data.alpha": [0.1, 0.5], "train.lr": [0.01, 0.1]}))
        assert [cell.label for cell in found] == [
            "r, alpha 0.1, lr 0.01", "r, alpha 0.1, lr 0.1", "r, alpha 0.5, lr 0.01", "r, alpha 0.5, lr 0.1",
        ]  # fmt: skip
        settings = [(c.data.alpha, c.train.lr) for cell in found for c in cell.variants.values()]
        assert settings == [p for p in ((0.1, 0.01), (0.1, 0.1), (0.5, 0.01), (0.5, 0.1)) for _ in TWO]
        assert found[0].folder == "r-alpha-0.1-lr-0.01"

    def test_labelled_alternatives_set_several_settings(self) -> None:
        grid = {"fleet": [{"label": "weak", "fleet.tiers": WEAK, "data.alpha": 0.1},
                          {"label": "strong", "fleet": {"tiers": STRONG}}]}  # fmt: skip
        weak, strong = cells(compared(grid))
        assert (weak.label, strong.label) == ("r, weak", "r, strong")
        config = weak.variants["prox"]
        assert (config.fleet.tiers[0].budget, config.data.alpha) == ("85%", 0.1)
        assert strong.variants["prox"].fleet.tiers[0].budget == "100%"
        assert weak.settings == {"fleet.tiers": WEAK, "data.alpha": 0.1}

    def test_variants_win_over_the_grid(self) -> None:
        variants = {"bound": {}, "no-limit": {"fleet.tiers": STRONG}}
        (weak,) = cells(compared({"fleet": [{"label": "weak", "fleet.tiers": WEAK}]}, variants))
        budgets = {label: config.fleet.tiers[0].budget for label, config in weak.variants.items()}
        assert budgets == {"bound": "85%", "no-limit": "100%"}

    def test_one_budget_for_whatever_tiers_there_are(self) -> None:
        variants = {"bound": {}, "no-limit": {"fleet.budget": "100%"}}
        grid = {"fleet": [{"label": "weak", "fleet.tiers": WEAK}, {"label": "two", "fleet.tiers": [*WEAK, *MORE]}]}
        weak, two = cells(compared(grid, variants, oracle="no-limit"))
        budgets = {label: [tier.budget for tier in config.fleet.tiers] for label, config in two.variants.items()}
        assert budgets == {"bound": ["85%", "95%"], "no-limit": ["100%", "100%"]}
        assert [tier.device for tier in weak.variants["no-limit"].fleet.tiers] == ["raspberry-pi-4"]

    def test_labels_without_ascii_letters_name_folders(self) -> None:
        found = [cells_of({name: compared()})[0].folder for name in ("\u65e5\u672c", "../..", "a b\u00fc")]
        assert found[0] == "\u65e5\u672c"
        assert re.fullmatch(r"cell-[0-9a-f]{8}", found[1])
        assert found[2] == "a-b\u00fc"

    def test_the_command_line_wins_over_both_and_takes_the_axis_away(self) -> None:
        raw = compared({"data.alpha": [0.1, 0.5], "train.lr": [0.01, 0.1]}, {"a": {"data.alpha": 9.0}})
        found = cells(raw, data__alpha=2.0)
        assert [cell.label for cell in found] == ["r, lr 0.01", "r, lr 0.1"]
        assert {cell.variants["a"].data.alpha for cell in found} == {2.0}

    def test_the_command_line_replaces_an_axis_or_the_targets(self) -> None:
        raw = compared({"data.alpha": [0.1, 0.5]}, targets=[0.5])
        found = cells(raw, compare__grid__data__alpha=[0.3], compare__targets=[0.9, 0.7])
        assert [cell.label for cell in found] == ["r, alpha 0.3"]
        assert found[0].targets == (0.7, 0.9)

    def test_without_a_grid_there_is_one_cell_and_without_variants_one_variant(self) -> None:
        (cell,) = cells(small(method="fedprox"))
        assert (cell.label, list(cell.variants)) == ("r", ["fedprox"])

    def test_what_is_fixed_does_not_change_a_run(self) -> None:
        """`fedhybrid run` stores the same configuration with and without what only comparisons look at."""
        plain = load_config(compared()).model_dump(exclude_none=True)
        assert plain["compare"] == {"variants": TWO}


class TestRuns:
    def test_cell_by_cell_and_seed_by_seed(self) -> None:
        found = runs_of(cells(compared({"data.alpha": [0.1, 0.5]}), seed=4), seeds=2)
        assert [run.label for run in found] == [
            f"r, alpha {alpha}, seed {seed}: {label}" for alpha in (0.1, 0.5) for seed in (4, 5) for label in TWO
        ]
        assert found[2].folder == Path("runs/r-alpha-0.1/seed-5/plain")
        assert [run.config.seed for run in found[:4]] == [4, 4, 5, 5]


class TestRefusal:
    @pytest.mark.parametrize(
        ("grid", "expected"),
        [
            ({"data.alhpa": [0.1, 0.2]}, "compare.grid: unknown key data.alhpa. Did you mean 'alpha'?"),
            ({"data.alpha": 0.1}, "compare.grid.data.alpha must be a list of values, got 0.1"),
            ({"data.alpha": []}, "compare.grid.data.alpha must be a list of values, got []"),
            ({"data.alpha": [0.1, 0.1]}, "compare.grid.data.alpha: 'alpha 0.1' is there twice"),
            ({"fleet.tiers": [WEAK, STRONG]}, "compare.grid.fleet.tiers: values that are lists or tables need labels"),
            ({"fleet": [{"fleet.tiers": WEAK}]}, "compare.grid.fleet: every alternative needs a label"),
            ({"seed": [1, 2]}, "compare.grid.seed: neither the seed nor what is compared can be an axis"),
            ({"s": [{"label": "a", "compare.targets": [0.3]}]}, "compare.grid.s: neither the seed nor what is"),
            ({"rounds": [1, 0]}, "compare.grid: rounds: must be greater than or equal to 1, got 0"),
        ],
    )  # fmt: skip
    def test_of_a_grid(self, grid: dict[str, Any], expected: str) -> None:
        (problem,) = refused(compared(grid))
        assert problem.startswith(expected)

    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            ({"reference": "pain"}, "compare: reference must name one of the variants (plain, prox), got 'pain'"),
            ({"oracle": "oracle"}, "compare: oracle must name one of the variants (plain, prox), got 'oracle'"),
            ({"targets": [1.5]}, "compare.targets.0: must be less than 1, got 1.5"),
        ],
    )
    def test_of_what_is_compared(self, more: dict[str, Any], expected: str) -> None:
        assert refused(compared(**more)) == [expected]

    def test_of_labels_that_would_share_a_folder(self) -> None:
        (problem,) = refused(compared(variants={"a": {}, "A": {"method": "fedprox"}}))
        assert problem == "r: the variants 'a' and 'A' would share a folder; rename one"
        grid = {"s": [{"label": "x y", "rounds": 1}, {"label": "x-y", "rounds": 2}]}
        assert refused(compared(grid)) == ["the cells 'r, x y' and 'r, x-y' would share a folder; give other labels"]

    def test_of_cells_that_are_the_same(self) -> None:
        grid = {"s": [{"label": "one"}, {"label": "two", "train.lr": 0.05}]}
        assert refused(compared(grid)) == ["the cells 'r, one' and 'r, two' would run the same; take one away"]

    def test_of_variants_that_are_the_same(self) -> None:
        """An override takes away what told them apart."""
        problems = refused(compared({"data.alpha": [0.1, 0.5]}), method="fedavg")
        same = "the variants 'plain' and 'prox' would run the same; take one away, or what makes them equal"
        assert [problem.split(" (")[0] for problem in problems] == [f"r, alpha {a}: {same}" for a in (0.1, 0.5)]

    def test_of_an_oracle_that_is_the_reference(self) -> None:
        (problem,) = refused(compared(reference="plain", oracle="plain"))
        assert problem.startswith("compare: oracle and reference must be two variants, both are 'plain'")

    def test_of_an_oracle_on_other_devices(self) -> None:
        """The grid's tiers reach the others; those of the oracle stay those of the recipe that was written first."""
        variants = {"bound": {}, "no-limit": {"fleet.tiers": [{**WEAK[0], "budget": "100%"}]}}
        grid = {"fleet": [{"label": "weak", "fleet.tiers": WEAK}, {"label": "strong", "fleet.tiers": STRONG}]}
        (problem,) = refused(compared(grid, variants, oracle="no-limit"))
        assert problem.startswith("r, strong: the oracle 'no-limit' may differ from the others in budgets only, but it")
        assert "raspberry-pi-4 (share 1, spread 0), and 'bound' has laptop (share 1, spread 0)" in problem

    def test_of_a_seed_in_a_variant(self) -> None:
        (problem,) = refused(compared(variants={"a": {}, "b": {"seed": 9}}))
        assert problem.startswith("compare.variants.b sets the seed")

    def test_of_several_recipes_names_each(self) -> None:
        with pytest.raises(ConfigError) as caught:
            cells_of({"one": compared({"data.alhpa": [1]}), "two": small(methd="x"), "three": compared()})
        assert [problem.split(":")[0] for problem in caught.value.problems] == ["one", "two"]
