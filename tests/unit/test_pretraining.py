"""Models pre-trained at the server or read from a file, and federations of some classes of a data set."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.federation_parts import recipe

import fedhybrid as fh
from fedhybrid.data import load_dataset
from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.errors import ConfigError
from fedhybrid.experiment import build_federation, config_toml, load_config
from fedhybrid.experiment.overrides import apply_overrides
from fedhybrid.experiment.pretraining import PRETRAINED
from fedhybrid.experiment.samples import federated_data, pretraining_rows
from fedhybrid.integrations.flower.brief import brief_of
from fedhybrid.models.weights import head_tensors
from fedhybrid.tree import tensors_of

LOW, HIGH = [0, 1, 2, 3, 4], [9, 5, 6, 7, 8]
TRAINED = {"classes": LOW, "new_head": True, "steps": 4, "batch_size": 8}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDHYBRID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def transfer(pretrain: Any = None, **changes: Any) -> dict[str, Any]:
    """The digits 5 to 9 on six devices, of a network that knows 0 to 4."""
    base = recipe(
        method="fedavg",
        policy="uniform",
        model="cnn",
        model_options={"width": 0.25},
        rounds=1,
        data={"clients": 6, "alpha": 5.0, "classes": HIGH},
        fleet={"clients_per_round": 2},
        train={"batch_size": 8, "steps": 2},
        pretrain=TRAINED if pretrain is None else pretrain,
    )
    return base | changes


def problems_of(raw: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_federation(load_config(raw))
    return list(caught.value.problems)


def same(first: Any, second: Any, *, but: frozenset[str] = frozenset()) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first if n not in but)


class TestClasses:
    def test_a_federation_of_some_classes_numbers_them_in_the_given_order(self) -> None:
        whole, job = load_dataset("digits"), build_federation(load_config(transfer()), values=False)
        data = job.dataset
        assert (data.classes, data.name) == (5, "digits, classes 9, 5, 6, 7, 8")
        for split, all_of_it in ((data.train, whole.train), (data.test, whole.test)):
            rows = np.flatnonzero(np.isin(all_of_it.labels.numpy(), HIGH))
            assert len(split) == len(rows)
            x, y = split.batch(torch.arange(40))
            before_x, before_y = all_of_it.batch(torch.from_numpy(rows[:40]))
            assert torch.equal(x, before_x)
            assert [HIGH[label] for label in y.tolist()] == before_y.tolist()
            assert torch.equal(y, split.labels[:40])
            assert torch.equal(split.batch(slice(3, 9))[1], y[3:9])
        assert sum(len(job.shards[client]) for client in range(6)) == len(data.train)

    def test_people_keep_their_samples(self) -> None:
        whole = load_dataset("digits")
        owned = replace(whole, natural_ids=np.arange(len(whole.train)), test_ids=np.arange(len(whole.test)))
        data = federated_data(load_config(transfer()), owned)
        assert data.natural_ids is not None
        assert data.test_ids is not None
        assert np.array_equal(data.natural_ids, np.flatnonzero(np.isin(whole.train.labels.numpy(), HIGH)))
        assert len(data.test_ids) == len(data.test)

    @pytest.mark.parametrize(
        ("classes", "told"),
        [
            ([5], "data.classes"),
            ([5, 5], "data.classes: no class may stand there twice"),
            ([5, -1], "data.classes.1"),
            ([5, 12], "data.classes must be classes of digits, 0 to 9; found 12"),
        ],
    )
    def test_lists_that_name_no_classes(self, classes: list[int], told: str) -> None:
        raw = transfer(data={"clients": 6, "classes": classes})
        assert any(told in problem for problem in problems_of(raw)), problems_of(raw)


class TestSamples:
    def test_a_share_is_held_back_from_the_clients(self) -> None:
        raw = transfer({"share": 0.25, "steps": 2}, data={"clients": 6, "alpha": 5.0})
        config, whole = load_config(raw), load_dataset("digits")
        rows, data = pretraining_rows(config, whole), federated_data(config, whole)
        assert len(rows) + len(data.train) == len(whole.train)
        held = np.bincount(whole.train.labels.numpy()[rows], minlength=10)
        every = np.bincount(whole.train.labels.numpy(), minlength=10)
        assert np.abs(held - 0.25 * every).max() <= 0.5
        rest = np.setdiff1d(np.arange(len(whole.train)), rows)
        assert torch.equal(data.train.batch(slice(0, 20))[0], whole.train.batch(torch.from_numpy(rest[:20]))[0])
        assert len(federated_data(config, whole, held_back=False).train) == len(whole.train)

    def test_share_and_classes_together(self) -> None:
        raw = transfer({"share": 0.5, "classes": [5, 6], "new_head": True, "samples": 40})
        config, whole = load_config(raw), load_dataset("digits")
        rows, data = pretraining_rows(config, whole), federated_data(config, whole)
        assert len(rows) == 40
        assert set(whole.train.labels.numpy()[rows]) == {5, 6}
        of_run = np.isin(whole.train.labels.numpy(), HIGH).sum()
        assert len(data.train) == of_run - 40

    def test_the_seed_decides_which(self) -> None:
        whole, pretrain = load_dataset("digits"), {"share": 0.1, "steps": 1}
        first, again, other = (
            pretraining_rows(load_config(transfer(pretrain, seed=seed)), whole) for seed in (1, 1, 2)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_a_device_learns_what_it_goes_without_and_no_path(self) -> None:
        config = load_config(transfer({"share": 0.1, "steps": 1}))
        assert brief_of(config.model_dump(exclude_none=True))["pretrain"]["share"] == 0.1
        named = load_config(transfer({"weights": "some.safetensors"})).model_dump(exclude_none=True)
        assert "pretrain" not in brief_of(named)


class TestTraining:
    def test_the_run_begins_with_what_was_trained_and_a_new_head(self) -> None:
        raw = transfer()
        plain = tensors_of(build_federation(load_config(raw), values=False).model)
        job = build_federation(load_config(raw))
        trained, head = tensors_of(job.model), head_tensors(job.model)
        assert all(not torch.equal(trained[n], plain[n]) for n in trained if n not in head)
        weight, bias = (trained[name] for name in sorted(head, reverse=True))
        assert weight.shape[0] == 5
        assert 0 < weight.abs().max() < 0.06
        assert not bias.any()
        assert torch.get_num_threads() == 1

    def test_it_learns(self) -> None:
        pretrain = {"share": 0.5, "epochs": 6, "batch_size": 16, "lr": 0.1, "momentum": 0.9}
        raw = transfer(pretrain, data={"clients": 6, "classes": [0, 1]})
        job = build_federation(load_config(raw))
        assert Evaluator(job.model, job.dataset.test).score(tensors_of(job.model)).accuracy > 0.9

    def test_the_same_again_from_the_cache_from_the_folder_and_by_training(
        self, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        out = tmp_path / "run"

        def weights(folder: Path | None = None) -> dict[str, torch.Tensor]:
            said.clear()
            return tensors_of(build_federation(load_config(transfer()), folder=folder, say=said.append).model)

        first = weights()
        assert any("pre-training" in line for line in said)
        assert same(weights(), first)
        assert said == []
        fh.run(transfer(), out=out)
        (kept,) = own_cache.glob("pretrained-*.safetensors")
        assert (out / PRETRAINED).read_bytes() == kept.read_bytes()
        kept.unlink()
        assert same(weights(out), first)
        assert said == []
        assert same(weights(), first)
        assert said != []
        kept.write_bytes(kept.read_bytes()[:100])
        assert same(weights(), first)
        assert said != [], "half a file is no file"
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FEDHYBRID_CACHE", str(tmp_path / "file/below"))
        assert same(weights(), first)

    def test_other_settings_are_trained_anew(self, own_cache: Path) -> None:
        changes: list[dict[str, Any]] = [
            {},
            {"seed": 6},
            {"model_options": {"width": 0.5}},
            {"pretrain": {**TRAINED, "lr": 0.01}},
            {"pretrain": {**TRAINED, "samples": 30}},
            {"pretrain": {**TRAINED, "classes": [0, 1]}},
        ]
        for number, change in enumerate(changes, start=1):
            build_federation(load_config(transfer(**change)))
            assert len(list(own_cache.iterdir())) == number, change
        build_federation(load_config(transfer(train={"batch_size": 4, "lr": 0.5})))
        assert len(list(own_cache.iterdir())) == len(changes), "clients' work has no part in it"

    def test_variants_share_it_and_a_resumed_run_keeps_it(self, tmp_path: Path, own_cache: Path) -> None:
        raw = transfer(compare={"variants": {"a": {"train.lr": 0.01}, "b": {"train.lr": 0.02}}})
        fh.run(raw, out=tmp_path / "runs", processes=1)
        (kept,) = own_cache.iterdir()
        assert all((tmp_path / "runs" / label / PRETRAINED).read_bytes() == kept.read_bytes() for label in "ab")
        kept.unlink()
        again = fh.run(raw, out=tmp_path / "runs", overrides={"rounds": 2}, resume=True, processes=1)
        assert [summary.rounds for summary in again.summaries.values()] == [2, 2]
        assert list(own_cache.iterdir()) == [], "nothing was trained again"

    def test_weights_that_run_away_are_said(self) -> None:
        (problem,) = problems_of(transfer({**TRAINED, "lr": 1e30}))
        assert "lower pretrain.lr" in problem


class TestFiles:
    def test_weights_of_a_file(self, tmp_path: Path) -> None:
        donor = tensors_of(build_federation(load_config(transfer(seed=77)), values=False).model)
        path = tmp_path / "donor.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in donor.items()}, path)
        job = build_federation(load_config(transfer({"weights": str(path)})))
        assert same(tensors_of(job.model), donor)
        assert job.pretrained is None
        head = head_tensors(job.model)
        larger = {n: torch.zeros(9, 9) if n in head else t.contiguous() for n, t in donor.items()}
        save_file(larger, path)
        headless = tensors_of(build_federation(load_config(transfer({"weights": str(path), "new_head": True}))).model)
        assert same(headless, donor, but=head)
        assert all(headless[name].abs().max() < 0.06 for name in head)

    def test_what_does_not_fit_is_said_at_once(self, tmp_path: Path) -> None:
        donor = tensors_of(build_federation(load_config(transfer()), values=False).model)
        names = sorted(donor)
        wrong = {name: tensor.contiguous() for name, tensor in donor.items()}
        del wrong[names[0]]
        wrong |= {"more": torch.zeros(1), names[1]: donor[names[1]].double(), names[2]: torch.zeros(7, 3)}
        path = tmp_path / "wrong.safetensors"
        save_file(wrong, path)
        found = problems_of(transfer({"weights": str(path)}))
        assert len(found) == 4, found
        assert f"lacks {names[0]}" in found[0]
        assert "more" in found[1]
        assert any("found float64" in problem for problem in found)
        assert any("found float32 of shape [7, 3]" in problem for problem in found)

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "bad.safetensors").write_text("no tensors")
        (problem,) = problems_of(transfer({"weights": str(tmp_path / "bad.safetensors")}))
        assert "is no safetensors file" in problem
        (problem,) = problems_of(transfer({"weights": str(tmp_path / "nowhere.safetensors")}))
        assert "nowhere.safetensors cannot be read" in problem

    def test_a_file_that_changes_under_a_run(self, tmp_path: Path) -> None:
        donor = tensors_of(build_federation(load_config(transfer(seed=77)), values=False).model)
        path = tmp_path / "donor.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in donor.items()}, path)
        raw = transfer({"weights": str(path)})
        fh.run(raw, out=tmp_path / "run")
        save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
        with pytest.raises(ConfigError, match=r"pretrain\.weights: .* is not what it was"):
            fh.run(raw, out=tmp_path / "run", overrides={"rounds": 2}, resume=True)


@pytest.mark.parametrize(
    ("pretrain", "told"),
    [
        ({"step": 3}, "unknown key pretrain.step. Did you mean 'steps'?"),
        ({"share": 1.5}, "pretrain.share: must be less than 1"),
        ({"share": 0.1, "steps": 3, "epochs": 2}, "epochs and steps are two ways"),
        ({"share": 0.1, "optimizer": "adam", "momentum": 0.9}, "momentum is an option of sgd"),
        ({"weights": "a", "steps": 3, "lr": 0.1}, "lr, steps say how to train, and weights names a file"),
        ({}, "samples that clients hold (of all classes); hold some back with pretrain.share"),
        ({"classes": [4, 5, 6], "new_head": True}, "samples that clients hold (of classes 5, 6)"),
        ({"classes": LOW}, "pretrain.new_head must be true"),
        ({"dataset": "fashion-mnist", "new_head": True, "share": 0.1}, "pretrain.share is what clients"),
        ({"root": "somewhere", "share": 0.1}, "pretrain.root is the folder of pretrain.dataset"),
        ({"dataset": "digit", "new_head": True}, "pretrain.dataset: unknown dataset 'digit'. Did you mean 'digits'?"),
        ({"classes": [3, 12], "new_head": True}, "pretrain.classes must be classes of digits, 0 to 9; found 12"),
    ],
)
def test_tables_that_make_no_sense(pretrain: dict[str, Any], told: str) -> None:
    found = problems_of(transfer(pretrain))
    assert sum(told in problem for problem in found) == 1, found


def test_complete_tables_are_recipes_again() -> None:
    for pretrain in (TRAINED, {"weights": "some.safetensors"}, {"share": 0.1}):
        text = config_toml(transfer(pretrain))
        assert config_toml(tomllib.loads(text)) == text
    assert "epochs = 5" in text


def test_an_override_of_steps_takes_the_place_of_epochs() -> None:
    merged = apply_overrides({"pretrain": {"epochs": 3}, "train": {"epochs": 2}}, {"pretrain.steps": 7})
    assert merged == {"pretrain": {"steps": 7}, "train": {"epochs": 2}}
