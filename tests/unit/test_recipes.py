"""Recipes and overrides: every problem in one clear line, all of them at once; what is resolved is a recipe again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.federation_parts import recipe

from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, Adam, AdamW, Proximal
from fedhybrid.experiment import build_federation, config_toml, load_config
from fedhybrid.experiment.cells import cells_of
from fedhybrid.experiment.check import to_table, variants_of
from fedhybrid.experiment.config import RunConfig, TrainTable
from fedhybrid.experiment.material import base_optimizer
from fedhybrid.experiment.overrides import apply_overrides
from fedhybrid.experiment.parts import input_files

ROOT = Path(__file__).parents[2]
RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.toml"))


def problems_of(raw: Any, **overrides: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(raw, {key.replace("__", "."): value for key, value in overrides.items()})
    return list(caught.value.problems)


class TestProblems:
    @pytest.mark.parametrize(
        ("path", "value", "expected"),
        [
            ("round", 3, "unknown key round. Did you mean 'rounds'?"),
            ("train.lrr", 0.1, "unknown key train.lrr. Did you mean 'lr'?"),
            ("lr", 0.1, "unknown key lr. Did you mean 'train.lr'?"),
            ("fleet.tiers", [{"name": "a", "budget": "50%", "device": "laptop", "shar": 1}], "Did you mean 'share'?"),
            ("rounds", "many", "rounds: must be a valid integer, got 'many'"),
            ("rounds", 2.0, "rounds: must be a valid integer"),
            ("rounds", 0, "rounds: must be greater than or equal to 1, got 0"),
            ("train", 5, "train: must be a table, got 5"),
            ("model_options", [], "model_options: must be a table, got []"),
            ("fleet.tiers", [], "fleet.tiers: must have at least one entry, got []"),
            (
                "fleet.clients_per_round",
                25,
                "fleet.clients_per_round must be at most data.clients, which is 24, got 25",
            ),
            ("train.lr", "0.1", "train.lr: must be a valid number, got '0.1'"),
            ("train.lr", -0.1, "train.lr: must be greater than 0"),
            ("train.lr", float("inf"), "train.lr: must be a finite number"),
            ("train.optimizer", "sgdm", "train.optimizer: must be 'sgd', 'adam' or 'adamw'"),
            ("train.optimizer", "adam", "train: momentum and nesterov are options of sgd, the optimizer is adam"),
            ("train.last_batch", "pad", "train.last_batch: must be 'wrap' or 'drop'"),
            ("method", "fedhibrid", "unknown method 'fedhibrid'. Did you mean 'fedhybrid'?"),
            ("policy", "unifrom", "unknown policy 'unifrom'. Did you mean 'uniform'?"),
            ("model", "mobilenetv2", "unknown model 'mobilenetv2'. Did you mean 'mobilenet_v2'?"),
            ("model", "no.such:net", "model 'no.such:net' must be package.module:factory"),
            ("dataset", "digit", "unknown dataset 'digit'. Did you mean 'digits'?"),
            ("data.partition", "dirichlett", "unknown partition 'dirichlett'. Did you mean 'dirichlet'?"),
            ("planner.solver", "gready", "unknown solver 'gready'. Did you mean 'greedy'?"),
            ("planner.actions", ["recomputes"], "unknown action 'recomputes'. Did you mean 'recompute'?"),
            ("planner.enabled", True, "planner.enabled: must be 'auto', 'on' or 'off', got True"),
            ("method_options.mu", 0.1, "method_options.mu: method 'fedhybrid' has no such option"),
            ("policy_options.bonu", 0.1, "policy_options.bonu: policy 'fedhybrid' has no such option. Did you mean"),
            ("policy_options.bonus", "big", "policy_options.bonus: must be a valid number, got 'big'"),
            ("policy_options.bonus", -1.0, "bonus must be at least 0"),
            ("model_options.widht", 1.0, "model_options.widht: model 'resnet20' has no such option. Did you mean"),
            ("model_options.width", "wide", "model_options.width: must be a valid number, got 'wide'"),
        ],
    )
    def test_one_line_each(self, path: str, value: Any, expected: str) -> None:
        (problem,) = problems_of(recipe(), **{path.replace(".", "__"): value})
        assert expected in problem

    @pytest.mark.parametrize(
        ("budget", "expected"),
        [("-5 MiB", "-5 MiB"), (-5, "must be positive, got -5"), ("0%", "must be positive"), ("lots", "'lots'")],
    )
    def test_budgets(self, budget: str | int, expected: str) -> None:
        tiers = [{"name": "low", "budget": budget, "device": "laptop"}]
        (problem,) = problems_of(recipe(), fleet__tiers=tiers)
        assert expected in problem
        assert "low" in problem

    def test_unknown_device(self) -> None:
        tiers = [{"name": "low", "budget": "40%", "device": "laptob"}]
        (problem,) = problems_of(recipe(), fleet__tiers=tiers)
        assert "Did you mean 'laptop'?" in problem

    def test_missing_entries(self) -> None:
        assert problems_of({"rounds": 3}) == ["model is missing", "dataset is missing"]

    def test_options_of_one_part_all_at_once(self) -> None:
        found = problems_of(recipe(policy_options={"foo": 1, "bonus": -1.0, "stat": "x"}))
        assert len(found) == 3, found
        for part in ("policy_options.foo: policy", "bonus must be at least 0", "stat must be one of"):
            assert sum(part in problem for problem in found) == 1, (part, found)

    def test_all_at_once(self, tmp_path: Path) -> None:
        found = problems_of(
            recipe(compare={"variants": {"a/b": {}, "other": {"train.lr": "slow"}}}),
            sede=3,
            rounds="many",
            method="fedhibrid",
            model_options__widht=3,
            dataset="cifar10",
            data__root=str(tmp_path / "nothing"),
        )
        for part in (
            "'seed'",
            "rounds: must",
            "'fedhybrid'",
            "'width'",
            str(tmp_path / "nothing"),
            "'a/b'",
            "train.lr",
        ):
            assert sum(part in problem for problem in found) == 1, (part, found)
        assert all("\n" not in problem for problem in found)

    def test_problem_of_a_variant_names_it_and_is_said_once(self) -> None:
        raw = recipe(compare={"variants": {"prox": {"method": "fedprox", "method_options": {"mu": -1.0}}, "plain": {}}})
        assert problems_of(raw) == ["compare.variants.prox: method_options: mu must be at least 0, got -1.0"]

    def test_what_only_the_data_can_tell(self) -> None:
        config = load_config(recipe(), {"data.clients": 5000, "model": "vit", "model_options": {"patch": 5}})
        with pytest.raises(ConfigError) as caught:
            build_federation(config)
        assert any("data.clients must be 1 to" in problem for problem in caught.value.problems)
        assert len(caught.value.problems) == 2

    def test_missing_folder_is_found_when_building(self, tmp_path: Path) -> None:
        config = load_config(recipe(), {"dataset": "fashion-mnist", "data.root": str(tmp_path / "none")})
        with pytest.raises(ConfigError, match="none"):
            build_federation(config)

    def test_two_profiles_of_one_name(self, tmp_path: Path) -> None:
        profiles = ROOT / "src/fedhybrid/devices/profiles"
        text = (profiles / "laptop.toml").read_text()
        (tmp_path / "mine.toml").write_text(text.replace("memory_bytes = ", "memory_bytes = 1"))
        tiers = [
            {"name": "a", "budget": "100%", "device": "laptop"},
            {"name": "b", "budget": "100%", "device": str(tmp_path / "mine.toml")},
        ]
        with pytest.raises(ConfigError, match="two different device profiles"):
            build_federation(load_config(recipe(), {"fleet.tiers": tiers}))

    @pytest.mark.parametrize(("text", "expected"), [("a = = 1", "is not TOML"), (None, "cannot be read")])
    def test_files(self, tmp_path: Path, text: str | None, expected: str) -> None:
        path = tmp_path / "r.toml"
        if text is not None:
            path.write_text(text)
        (problem,) = problems_of(path)
        assert expected in problem
        assert str(path) in problem

    def test_natural_clients_of_data_that_know_none(self) -> None:
        with pytest.raises(ConfigError) as caught:
            build_federation(load_config(recipe(), {"data.partition": "natural"}))
        (problem,) = caught.value.problems
        assert problem.startswith("data.partition: partition 'natural' needs a dataset that says whose each sample is")

    def test_incidents_of_clients_that_there_are_not(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        rows = [f"{client},0,1,crash" for client in (23, 24, 90, 24)]
        trace.write_text("\n".join(["client,from_s,to_s,kind", *rows]) + "\n")
        assert problems_of(recipe(failures={"trace": str(trace)})) == [
            f"failures.trace: {trace} names clients that there are not: 24, 90; data.clients is 24, so they are 0 to 23"
        ]
        trace.unlink()
        assert problems_of(recipe(failures={"trace": str(trace)})) == [
            f"failures.trace: {trace} cannot be read: No such file or directory"
        ]

    @pytest.mark.parametrize("other", ["steps", "samples"])
    def test_more_than_one_amount_of_work(self, other: str) -> None:
        (problem,) = problems_of(recipe(train={"epochs": 1, other: 5}))
        assert problem == f"train: epochs and {other} are two ways to say how much is trained; give one of them"
        assert "epochs, steps and samples are three ways" in problems_of(
            recipe(train={"epochs": 1, "steps": 5, "samples": 9})
        )[0]  # fmt: skip


class TestOverrides:
    def test_reach_into_tables_and_make_them(self) -> None:
        merged = apply_overrides({"train": {"lr": 0.1, "epochs": 2}}, {"train.lr": 0.2, "data.alpha": 1.0, "seed": 3})
        assert merged == {"train": {"lr": 0.2, "epochs": 2}, "data": {"alpha": 1.0}, "seed": 3}

    def test_nested_tables_mean_the_same_as_dots(self) -> None:
        raw = {"train": {"lr": 0.1, "epochs": 2}}
        assert apply_overrides(raw, {"train": {"lr": 0.2}}) == apply_overrides(raw, {"train.lr": 0.2})

    def test_leave_the_recipe_alone(self) -> None:
        raw = recipe()
        apply_overrides(raw, {"train.lr": 9.0, "fleet.clients_per_round": 1})
        assert raw == recipe()

    def test_through_something_that_is_no_table(self) -> None:
        with pytest.raises(ConfigError) as caught:
            apply_overrides({"seed": 1, "rounds": 2}, {"seed.x": 1, "rounds.y.z": 2})
        assert list(caught.value.problems) == [
            "seed.x cannot be set: seed is no table",
            "rounds.y.z cannot be set: rounds is no table",
        ]

    def test_into_a_list(self) -> None:
        assert problems_of(recipe(), **{"fleet.tiers.0.budget": "0%"}) == [
            "fleet.tiers.0.budget cannot be set: fleet.tiers is a list, and lists are replaced whole; edit the recipe, "
            "or give all of fleet.tiers"
        ]

    def test_one_amount_of_work_takes_the_place_of_another(self) -> None:
        raw = recipe(train={"epochs": 3})
        asked = load_config(raw, {"train.steps": 7}).train
        assert (asked.epochs, asked.steps, asked.samples) == (None, 7, None)
        asked = load_config(recipe(train={"steps": 7}), {"train": {"epochs": 2}}).train
        assert (asked.epochs, asked.steps, asked.samples) == (2, None, None)
        (problem,) = problems_of(raw, train__steps=7, train__samples=9)
        assert problem.startswith("train: steps and samples are two ways")

    def test_options_go_with_their_part(self) -> None:
        raw = recipe(method="fedprox", method_options={"mu": 0.5})
        assert load_config(raw, {"method": "fedprox"}).method_options == {"mu": 0.5}
        assert load_config(raw, {"method": "fedavg"}).method_options == {}
        assert load_config(raw, {"method": "fedavg", "policy": "uniform"}).policy_options == {}
        assert load_config(raw, {"model": "cnn"}).model_options["width"] == 1.0


class TestOverridesOfVariants:
    RAW: ClassVar = recipe(
        compare={
            "variants": {
                "ours": {},
                "prox": {"method": "fedprox", "method_options": {"mu": 0.5}, "train": {"lr": 0.3}},
                "theirs": {"method": "fedavg", "policy": "exclusion", "train.epochs": 2},
            }
        }
    )

    def variants(self, **overrides: Any) -> dict[str, RunConfig]:
        return variants_of(load_config(self.RAW, {key.replace("__", "."): v for key, v in overrides.items()}))

    def test_win_in_every_variant(self) -> None:
        found = self.variants(method="fedavg", policy="uniform", train__lr=0.2)
        assert {(each.method, each.policy, each.train.lr) for each in found.values()} == {("fedavg", "uniform", 0.2)}
        assert found["prox"].method_options == {}
        assert found["theirs"].train.epochs == 2  # what is not overridden stays

    def test_amounts_of_work(self) -> None:
        raw = recipe(compare={"variants": {"whole": {}, "short": {"train.steps": 7}, "few": {"train": {"samples": 9}}}})
        config = load_config(raw)
        found = {label: (t.epochs, t.steps, t.samples) for label, c in variants_of(config).items() for t in [c.train]}
        assert found == {"whole": (1, None, None), "short": (None, 7, None), "few": (None, None, 9)}
        assert variants_of(load_config(to_table(config))) == variants_of(config)
        forced = variants_of(load_config(raw, {"train.epochs": 2}))
        assert {(c.train.epochs, c.train.steps, c.train.samples) for c in forced.values()} == {(2, None, None)}

    def test_options_stay_with_their_part(self) -> None:
        assert self.variants(method="fedprox")["prox"].method_options == {"mu": 0.5}
        assert (
            self.variants(method="fedprox")["theirs"].method_options
            == load_config(recipe(method="fedprox")).method_options
        )
        both = self.variants(method="fedprox", method_options={"mu": 0.7})
        assert {each.method_options["mu"] for each in both.values()} == {0.7}

    def test_options_reach_a_variant_of_another_part(self) -> None:
        raw = recipe(policy_options={"bonus": 0.3}, compare={"variants": {"prox": {"method": "fedprox"}}})
        raw["method"] = "fedprox"
        raw["compare"]["variants"]["ours"] = {"method": "fedprox", "policy": "fedhybrid"}
        found = variants_of(load_config(raw, {"method_options.mu": 0.9, "policy_options.bonus": 0.4}))
        assert {(each.method_options["mu"], each.policy_options["bonus"]) for each in found.values()} == {(0.9, 0.4)}

    def test_a_whole_table_of_a_variant_does_not_hide_them(self) -> None:
        raw = recipe(method="fedprox", compare={"variants": {"a": {"method_options": {}}}})
        assert variants_of(load_config(raw, {"method_options.mu": 0.9}))["a"].method_options["mu"] == 0.9

    def test_what_is_resolved_keeps_them(self) -> None:
        config = load_config(self.RAW, {"method": "fedavg"})
        assert variants_of(load_config(to_table(config))) == variants_of(config)


class TestResolved:
    def test_is_a_recipe_again(self) -> None:
        text = config_toml(recipe(compare={"variants": {"plain": {}, "prox": {"method": "fedprox"}}}))
        raw = tomllib.loads(text)
        assert to_table(load_config(raw)) == raw
        assert {"partition", "alpha", "clients", "shards_per_client"} <= raw["data"].keys()
        assert raw["train"]["epochs"] == 1
        assert raw["policy_options"]["bonus"] == 0.1
        assert raw["model_options"] == {"width": 0.5, "norm": "batch"}

    @pytest.mark.parametrize("train", [{}, {"epochs": 2}, {"steps": 5}, {"samples": 33}])
    def test_amount_of_work_is_the_same_again(self, train: dict[str, int]) -> None:
        config = load_config(recipe(train=train))
        stored = to_table(config)
        assert {name: stored["train"].get(name) for name in ("epochs", "steps", "samples")} == {
            "epochs": None, "steps": None, "samples": None, **(train or {"epochs": 1}),
        }  # fmt: skip
        assert load_config(stored) == config

    def test_files_that_the_run_depends_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert input_files(load_config(recipe())) == {}
        monkeypatch.chdir(tmp_path)
        Path("f.csv").write_text("client,from_s,to_s,kind\n0,0,1,crash\n")
        Path("m.csv").write_text("time_s,available\n0,900 MiB\n5,1 GB\n")
        Path("a.csv").write_text("client,start_s,end_s\n0,0,5\n")
        fleet = recipe()["fleet"] | {
            "memory": {"file": "m.csv", "window_s": 2.0},
            "availability": {"kind": "file", "file": "a.csv"},
        }
        assert input_files(load_config(recipe(fleet=fleet, failures={"trace": "f.csv"}))) == {
            "failures.trace": tmp_path / "f.csv",
            "fleet.memory.file": tmp_path / "m.csv",
            "fleet.availability.file": tmp_path / "a.csv",
        }

    def test_root_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert load_config(recipe(), {"data.root": "my/data"}).data.root == str(tmp_path / "my/data")

    def test_own_device_profile_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.toml").write_text((ROOT / "src/fedhybrid/devices/profiles/laptop.toml").read_text())
        tiers = [{"name": name, "budget": "100%", "device": name} for name in ("mine.toml", "laptop")]
        config = load_config(recipe(), {"fleet.tiers": tiers})
        assert [tier.device for tier in config.fleet.tiers] == [str(tmp_path / "mine.toml"), "laptop"]

    def test_variants(self) -> None:
        raw = recipe(compare={"variants": {"ours": {}, "theirs": {"method": "fedavg", "policy": "exclusion"}}})
        variants = variants_of(load_config(raw, {"seed": 8}))
        assert list(variants) == ["ours", "theirs"]
        assert (variants["ours"].method, variants["theirs"].method) == ("fedhybrid", "fedavg")
        assert {variant.seed for variant in variants.values()} == {8}
        assert all(not variant.compare.variants for variant in variants.values())

    @pytest.mark.parametrize("path", RECIPES)
    def test_every_recipe_of_the_project_is_good(self, path: str) -> None:
        config = load_config(ROOT / path, {"rounds": 1, "seed": 2, "policy": "uniform"})
        assert to_table(load_config(to_table(config))) == to_table(config)

    @pytest.mark.parametrize("path", [path for path in RECIPES if path.startswith(("recipes/comp", "recipes/headl"))])
    def test_every_comparison_of_the_project_is_good_at_each_point_of_its_grid(self, path: str) -> None:
        cells = cells_of({"it": ROOT / path})
        assert all(cell.variants.keys() == load_config(ROOT / path).compare.variants.keys() for cell in cells)


class TestBuild:
    def test_same_seed_makes_the_same_parts(self) -> None:
        one, two = (build_federation(load_config(recipe())) for _ in range(2))
        assert all((a == b).all() for a, b in zip(one.shards, two.shards, strict=True))
        assert (one.fleet.tier == two.fleet.tier).all()
        state, other = one.model.state_dict(), two.model.state_dict()
        assert all(bool((state[name] == other[name]).all()) for name in state)

    def test_another_seed_makes_others(self) -> None:
        one, two = build_federation(load_config(recipe())), build_federation(load_config(recipe(), {"seed": 6}))
        assert any(len(a) != len(b) for a, b in zip(one.shards, two.shards, strict=True))

    def test_variants_share_data_fleet_and_initial_model(self) -> None:
        raw = recipe(compare={"variants": {"ours": {}, "theirs": {"method": "fedavg", "policy": "exclusion"}}})
        one, two = (build_federation(config) for config in variants_of(load_config(raw)).values())
        assert all((a == b).all() for a, b in zip(one.shards, two.shards, strict=True))
        assert (one.fleet.tier == two.fleet.tier).all()
        assert all(bool((p == q).all()) for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True))
        assert (one.plans, two.plans) == (True, False)

    @pytest.mark.parametrize(("enabled", "plans"), [("auto", False), ("on", True), ("off", False)])
    def test_plans_can_be_decided_for_the_method(self, enabled: str, plans: bool) -> None:
        config = load_config(recipe(), {"method": "fedavg", "planner.enabled": enabled})
        assert build_federation(config).plans is plans

    @pytest.mark.parametrize(
        ("train", "expected"),
        [
            ({"momentum": 0.9, "nesterov": True}, SGD(lr=0.05, momentum=0.9, nesterov=True)),
            ({"optimizer": "adam", "weight_decay": 0.1}, Adam(lr=0.05, weight_decay=0.1)),
            ({"optimizer": "adamw"}, AdamW(lr=0.05, weight_decay=0.0)),
        ],
    )
    def test_optimizers(self, train: dict[str, Any], expected: object) -> None:
        assert base_optimizer(TrainTable(**train)) == expected

    def test_fedprox_wraps_the_optimizer(self) -> None:
        config = load_config(recipe(method="fedprox", method_options={"mu": 0.3}))
        assert build_federation(config).optimizer == Proximal(base=SGD(lr=0.05, momentum=0.5), mu=0.3)
