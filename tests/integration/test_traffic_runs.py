"""What goes over the links in whole small runs: exact bytes both ways, errors that are fed back, nothing much lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.run_parts import SQUEEZED, UNEQUAL, assert_books_balance, asynchronous, last_state, model_of, small, start_s

import fedhybrid as fh
from fedhybrid.experiment import RunResult
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.tree import tensors_of, total_bytes
from fedhybrid.updates import STATE_PREFIX

ROUNDS = 14
_DATA = {"data": {"clients": 8, "alpha": 5.0}, "evaluation": {"every": ROUNDS}}
_DOWN = [{"name": "quantise", "bits": 8}]
RECIPES: dict[str, dict[str, Any]] = {
    "plain": small(rounds=ROUNDS, **_DATA),
    "squeezed": small(rounds=ROUNDS, **_DATA, traffic={"up": SQUEEZED, "down": _DOWN}),
    "forgetful": small(
        rounds=ROUNDS, **_DATA, traffic={"up": [each for each in SQUEEZED if each["name"] != "error-feedback"]}
    ),
    "differences": asynchronous("fedbuff", rounds=ROUNDS, **_DATA, traffic={"up": SQUEEZED[1:], "down": _DOWN}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """One run of each recipe."""
    folder = tmp_path_factory.mktemp("traffic")
    return {name: fh.run(raw, out=folder / name) for name, raw in RECIPES.items()}


@pytest.mark.parametrize("name", RECIPES)
class TestBytes:
    def test_of_each_task_are_those_foretold(self, name: str, runs: dict[str, RunResult]) -> None:
        job = build_federation(load_config(RECIPES[name]))
        model = tensors_of(job.model)
        down_bytes, up_bytes = job.down.expected_bytes(model), job.up.expected_bytes(model)
        assert {task.outcome for task in runs[name].clients} == {"completed"}
        assert {(task.bytes_down, task.bytes_up) for task in runs[name].clients} == {(down_bytes, up_bytes)}
        assert_books_balance(runs[name])

    def test_are_fewer_where_something_is_left_out(self, name: str, runs: dict[str, RunResult]) -> None:
        whole = total_bytes(tensors_of(build_federation(load_config(RECIPES[name])).model))
        task = runs[name].clients[0]
        if name == "plain":
            assert (task.bytes_down, task.bytes_up) == (whole, whole)
            return
        assert task.bytes_up < 0.1 * whole  # a tenth of the elements, each in a quarter of its bytes, and where it was
        assert task.bytes_down == whole if name == "forgetful" else task.bytes_down < 0.3 * whole

    def test_learns(self, name: str, runs: dict[str, RunResult]) -> None:
        plain, own = runs["plain"].summary, runs[name].summary
        assert plain is not None
        assert own is not None
        assert plain.final_accuracy > 0.8
        if name in ("squeezed", "differences"):  # with its errors fed back
            assert own.final_accuracy > plain.final_accuracy - 0.1


class TestTime:
    def test_fewer_bytes_take_less_of_it(self, runs: dict[str, RunResult]) -> None:
        """The same clients do the same steps: what a task saves is what its links save."""
        job = build_federation(load_config(RECIPES["plain"]))
        pairs = list(zip(runs["plain"].clients, runs["squeezed"].clients, strict=True))
        first = [(one, other) for one, other in pairs if one.round == 0]
        assert {one.client for one, _ in first} == {other.client for _, other in first}
        others = {other.client: other for _, other in first}
        for one, _ in first:
            other = others[one.client]
            device = job.fleet.tiers[int(job.fleet.tier[one.client])].device
            saved_s = (one.bytes_down - other.bytes_down) / device.downlink_bytes_per_s
            saved_s += (one.bytes_up - other.bytes_up) / device.uplink_bytes_per_s
            assert start_s(one) == pytest.approx(0)
            assert one.virtual_time_s - other.virtual_time_s == pytest.approx(saved_s)
            assert saved_s > 0


class TestErrorFeedback:
    def test_what_is_not_sent_is_kept(self, tmp_path: Path) -> None:
        """One client, one round: the new model and what the client keeps are what it has trained."""
        alone = {"rounds": 1, "fleet": UNEQUAL | {"clients_per_round": 1}}
        squeezed = fh.run(small(**alone, traffic={"up": SQUEEZED}), out=tmp_path / "squeezed").folder
        plain = fh.run(small(**alone), out=tmp_path / "plain").folder
        (path,) = (squeezed / "states").iterdir()
        kept = {name.removeprefix(STATE_PREFIX): tensor for name, tensor in load_file(path).items()}
        model, trained = (load_file(folder / "model.safetensors") for folder in (squeezed, plain))
        assert kept.keys() == model.keys()
        assert any(bool(tensor.count_nonzero()) for tensor in kept.values())
        for name, tensor in trained.items():
            assert not torch.equal(model[name], tensor)
            torch.testing.assert_close(model[name] + kept[name], tensor, rtol=0, atol=1e-6)

    def test_survives_rounds(self, tmp_path: Path) -> None:
        """The first round is as without it, as nobody has kept anything; when clients come again it is not."""
        traffic = {"up": [SQUEEZED[0], *SQUEEZED[2:]]}
        everybody = {**_DATA, "fleet": UNEQUAL | {"clients_per_round": 8}}
        models: dict[int, list[dict[str, bytes]]] = {1: [], 2: []}
        for rounds, found in models.items():
            for name, up in (("with", SQUEEZED), ("without", traffic["up"])):
                out = tmp_path / f"{name}-{rounds}"
                fh.run(small(rounds=rounds, **everybody, traffic={"up": up}), out=out)
                found.append(model_of(out))
        assert models[1][0] == models[1][1]
        assert models[2][0] != models[2][1]

    def test_every_client_that_took_part_keeps_something(self, runs: dict[str, RunResult]) -> None:
        for name in ("squeezed", "differences"):
            took_part = {str(task.client) for task in runs[name].clients}
            assert set(last_state(runs[name].folder).client_states) == took_part
        assert not (runs["forgetful"].folder / "states").exists()
        assert not (runs["plain"].folder / "states").exists()


class TestDownlink:
    def test_clients_train_on_what_arrives(self, runs: dict[str, RunResult], tmp_path: Path) -> None:
        """A rounded model gives other losses, a little; and the server goes on from its own, which is not rounded."""
        coarse = small(rounds=1, **_DATA, traffic={"down": [{"name": "quantise", "bits": 8}]})
        first = fh.run(coarse, out=tmp_path / "run").rounds[0]
        exact = runs["plain"].rounds[0]
        assert first.cohort == exact.cohort
        assert first.train_loss != exact.train_loss
        assert first.train_loss == pytest.approx(exact.train_loss, rel=0.05)
        assert (first.bytes_up, first.bytes_down < exact.bytes_down) == (exact.bytes_up, True)

    def test_the_server_keeps_its_own_model(self, tmp_path: Path) -> None:
        """Where no update comes back, nothing of the rounding stays."""
        raw = small(rounds=1, failures={"crash": 1.0}, traffic={"down": [{"name": "quantise", "bits": 2}]})
        fh.run(raw, out=tmp_path / "run")
        initial = tensors_of(build_federation(load_config(raw)).model)
        assert model_of(tmp_path / "run") == {name: tensor.numpy().tobytes() for name, tensor in initial.items()}
