"""Classes that the devices of some tiers hold alone: in recipes, in federations, and on devices of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data_files import write_har
from tests.federation_parts import recipe
from tests.run_parts import small

import fedhybrid as fh
from fedhybrid.data import load_dataset
from fedhybrid.engine import Federation
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import build_federation, load_config
from fedhybrid.experiment.cells import cells_of
from fedhybrid.experiment.check import to_table
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.material import dealt
from fedhybrid.experiment.samples import federated_data
from fedhybrid.fleet import TierSpec, deal_tiers, make_fleet
from fedhybrid.integrations.flower.brief import brief_of
from fedhybrid.integrations.flower.device.setting import config_of
from fedhybrid.integrations.flower.device.slim import open_device

ALONE = {"alone_tiers": ["weak"], "alone_classes": [7, 2]}
CLIENTS = 12


def tied(tiers: tuple[str, ...] = ("weak", "strong"), **data: Any) -> dict[str, Any]:
    """Digits on twelve devices of two tiers; the weak ones hold some classes alone, unless `data` says otherwise."""
    fleet = [{"name": name, "budget": "95%", "device": "laptop", "share": 1.0 + i} for i, name in enumerate(tiers)]
    return small(
        method="fedavg",
        rounds=1,
        train={"batch_size": 8, "steps": 1},
        data={"clients": CLIENTS, "alpha": 0.5} | ALONE | data,
        fleet={"clients_per_round": 2, "tiers": fleet},
    )


def problems_of(raw: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_federation(load_config(raw))
    return list(caught.value.problems)


def held(job: Federation) -> np.ndarray:
    """How many samples of each class each client holds."""
    labels = job.dataset.train.labels.numpy()
    counts = [np.bincount(labels[job.shards[client]], minlength=job.dataset.classes) for client in range(CLIENTS)]
    return np.array(counts)


def as_device(config: RunConfig) -> RunConfig:
    """The configuration that a device makes of its brief, as it travels."""
    return config_of(json.loads(json.dumps(brief_of(to_table(config)))))


class TestProblems:
    @pytest.mark.parametrize(
        ("data", "told"),
        [
            ({"alone_tiers": ["weka"]}, "data.alone_tiers must name tiers of the fleet (weak, strong), got 'weka'"),
            (
                {"alone_tiers": []},
                "data.alone_classes needs data.alone_tiers: the tiers whose devices hold these classes alone",
            ),
            (
                {"partition": "iid"},
                "data.alone_classes needs data.partition to be one of dirichlet, natural, got 'iid'",
            ),
            ({"alone_classes": [3, 3]}, "data.alone_classes: no class may stand there twice"),
            (
                {"alone_classes": [10, 1, 12]},
                "data.alone_classes must be classes of digits, 0 to 9; found 10, 12",
            ),
            (
                {"classes": [5, 6, 7], "alone_classes": [3]},
                "data.alone_classes must be classes of digits, classes 5, 6, 7, 0 to 2; found 3",
            ),
        ],
    )
    def test_one_line_each(self, data: dict[str, Any], told: str) -> None:
        (problem,) = problems_of(tied(**data))
        assert problem.startswith(told)

    def test_all_at_once(self) -> None:
        found = problems_of(tied(alone_tiers=["a", "strong", "b"], partition="drawn"))
        assert [any(part in each for each in found) for part in ("'a'", "'b'", "'drawn'")] == [True] * 3
        assert len(found) == 3

    def test_a_class_is_a_number_from_0_on(self) -> None:
        assert any("data.alone_classes.0" in each for each in problems_of(tied(alone_classes=[-1])))

    def test_a_tier_without_devices(self) -> None:
        raw = tied(alone_tiers=["weak"], clients=1)  # the strong ones' share is larger
        raw["fleet"]["clients_per_round"] = 1
        (problem,) = problems_of(raw)
        assert problem.startswith("data.alone_classes: nobody may hold class 2, 7, because none of the 1 clients")

    def test_a_client_that_may_hold_nothing(self) -> None:
        (problem,) = problems_of(tied(alone_classes=list(range(10))))
        assert problem.startswith("data.partition: client")
        assert "gets no sample" in problem


class TestFederations:
    @pytest.mark.parametrize("seed", [1, 2])
    @pytest.mark.parametrize("tiers", [["weak"], ["strong"]])
    def test_only_devices_of_these_tiers_hold_these_classes(self, tiers: list[str], seed: int) -> None:
        job = build_federation(load_config(tied(alone_tiers=tiers), {"seed": seed}))
        allowed = np.array([job.fleet.tiers[tier].name in tiers for tier in job.fleet.tier])
        counts = held(job)
        assert 0 < allowed.sum() < CLIENTS
        assert not counts[~allowed][:, [2, 7]].any()
        assert counts[allowed][:, [2, 7]].sum() == (np.isin(job.dataset.train.labels, [2, 7])).sum()
        assert (counts[:, [0, 1, 3]].sum(axis=1)[allowed] > 0).any(), "of the other classes they have some, too"
        assert counts.sum(axis=1).min() > 0
        assert counts.sum() == len(job.dataset.train)

    def test_of_all_tiers_nothing_is_held_alone(self) -> None:
        plain, every = (build_federation(load_config(tied(**data))) for data in (
            {"alone_tiers": None, "alone_classes": None}, {"alone_tiers": ["weak", "strong"]},
        ))  # fmt: skip
        assert np.array_equal(held(plain), held(every))

    @pytest.mark.parametrize("classes", [None, []])
    def test_tiers_without_classes_change_nothing(self, classes: list[int] | None) -> None:
        plain = load_config(tied(alone_tiers=None, alone_classes=None))
        named = load_config(tied(alone_classes=classes))
        data = load_dataset("digits")
        assert all(np.array_equal(dealt(plain, data)[i], dealt(named, data)[i]) for i in range(CLIENTS))

    def test_classes_are_numbered_as_the_federation_has_them(self) -> None:
        job = build_federation(load_config(tied(classes=[9, 5, 6], alone_classes=[0])))
        weak = job.fleet.tier == 0
        assert (held(job)[:, 0] > 0)[~weak].sum() == 0
        assert held(job)[weak][:, 0].sum() == (load_dataset("digits").train.labels == 9).sum()

    def test_people_go_without_their_samples(self, tmp_path: Path) -> None:
        write_har(tmp_path, people=CLIENTS)
        data = {"root": str(tmp_path), "partition": "natural", "alone_classes": [1, 4]}
        raw = tied(**data) | {"dataset": "uci-har", "model": "cnn1d"}
        job = build_federation(load_config(raw))
        counts = held(job)
        assert np.array_equal(counts[job.fleet.tier == 0], np.full((4, 6), 8))
        assert np.array_equal(counts[job.fleet.tier == 1], np.tile([8, 0, 8, 8, 0, 8], (8, 1)))
        (problem,) = problems_of(raw | {"data": raw["data"] | {"alone_classes": list(range(6))}})
        assert problem.startswith("data.partition: 8 of 12 clients (")
        assert "have nothing left" in problem

    def test_a_run_and_its_configuration(self, tmp_path: Path) -> None:
        result = fh.run(tied(), out=tmp_path / "run")
        assert result.summary is not None
        config = load_config(tied())
        assert load_config(to_table(config)) == config
        assert config.data.alone_classes == [7, 2]
        assert "alone_tiers" not in to_table(load_config(recipe()))["data"], "a recipe without has nothing of it"

    def test_a_grid_may_tie_and_untie(self) -> None:
        fleets = [{"label": label, "data.alone_classes": classes} for label, classes in (("untied", []), ("tied", [1]))]
        raw = tied(alone_classes=[]) | {"compare": {"grid": {"fleet": fleets}}}
        assert [len(c.data.alone_classes or ()) for cell in cells_of({"r": raw}) for c in cell.variants.values()] == [
            0,
            1,
        ]


class TestTiers:
    @given(
        shares=st.lists(st.sampled_from([0.1, 1.0, 2.5, 7.0]), min_size=1, max_size=6),
        clients=st.integers(1, 200),
        seed=st.integers(0, 2**40),
    )
    @settings(max_examples=60)
    def test_are_dealt_as_the_fleet_has_them(self, shares: list[float], clients: int, seed: int) -> None:
        specs = [TierSpec(name=str(i), budget="50%", device="laptop", share=share) for i, share in enumerate(shares)]
        found = deal_tiers(shares, clients, seed)
        fleet = make_fleet(specs, clients, seed)
        assert found.dtype == fleet.tier.dtype
        assert np.array_equal(found, fleet.tier)
        assert np.bincount(found, minlength=len(shares)).tolist() == [tier.clients for tier in fleet.tiers]


class TestDevices:
    def test_have_the_share_that_the_server_dealt_them(self) -> None:
        config = load_config(tied())
        job, on_device = build_federation(config), as_device(config)
        shards = dealt(on_device, federated_data(on_device, load_dataset("digits")))
        assert all(np.array_equal(shards[client], job.shards[client]) for client in range(CLIENTS))

    def test_one_opens_with_its_share(self, tmp_path: Path) -> None:
        config = load_config(tied())
        shards = build_federation(config).shards
        client = int(np.argmin(shards.sizes))
        device = open_device(brief_of(to_table(config)), client, tmp_path / "home")
        assert device.num_samples == len(shards[client])
        assert np.array_equal(device._shard, shards[client])

    def test_are_told_names_and_shares_of_tiers_and_nothing_else_of_the_fleet(self) -> None:
        told = brief_of(to_table(load_config(tied())))["fleet"]
        assert told.keys() == {"clients_per_round", "tiers"}
        assert [(tier["name"], tier["share"]) for tier in told["tiers"]] == [("weak", 1.0), ("strong", 2.0)]
        assert {(tier["budget"], tier["device"]) for tier in told["tiers"]} == {("100%", "laptop")}
        assert brief_of(to_table(load_config(recipe())))["fleet"] == {"clients_per_round": 1}
        load_config(brief_of(to_table(load_config(tied()))))

    def test_a_brief_whose_tiers_do_not_fit_is_refused(self, tmp_path: Path) -> None:
        brief = brief_of(to_table(load_config(tied()))) | {"fleet": {"clients_per_round": 1}}
        with pytest.raises(ConfigError, match=r"nobody may hold class 2, 7"):
            open_device(brief, 0, tmp_path)
