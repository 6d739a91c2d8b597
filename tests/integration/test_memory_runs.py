"""Classes that come one after the other on clients that keep exemplars: what travels, what is held, what it takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.memory_parts import bank_bytes, bank_of
from tests.run_parts import last_state, small

import fedhybrid as fh
from fedhybrid.engine.folder import RunFolder
from fedhybrid.engine.plans import FINE_BUCKETS
from fedhybrid.engine.runtime import LocalClient, Stretch, of_classes
from fedhybrid.engine.states import ClientStates
from fedhybrid.engine.world import book_of, submodels_of
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config
from fedhybrid.methods.memory_bank import AbstractMemory, Bank, Holding, Ledger
from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import ClientRecord, ClientTask, RoundRecord, Summary, Update
from fedhybrid.tree import Tensors, detached_copy, tensors_of, total_bytes

EACH, INPUT_BYTES = 3, 32 * 32 * 4
RECIPE: dict[str, Any] = {
    "method": "mtn",
    "method_options": {"exemplars": EACH, "dim": 16, "neighbours": 4, "tune_epochs": 1},
    "model_options": {"width": 0.125},
    "rounds": 6,
    "stream": {"tasks": 3, "rounds_each": 2},
    "data": {"clients": 5, "partition": "shards", "shards_per_client": 3},
    "fleet": {"clients_per_round": 5, "tiers": [{"name": "all", "budget": "400%", "device": "laptop"}]},
    "train": {"batch_size": 8, "steps": 2, "lr": 0.02},
    "planner": {"actions": ["recompute"]},
    "checkpoint_every": 1,
}


class Watcher:
    """Notes what every client has kept after each round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[int, dict[int, Tensors]] = {}

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        pass

    def on_stage(self, label: str, stage: str) -> None:
        pass

    def on_task(self, label: str, record: ClientRecord) -> None:
        pass

    def on_round(self, label: str, record: RoundRecord) -> None:
        states = ClientStates(self.folder / "states", last_state(self.folder).client_states)
        self.kept[record.round] = {client: dict(states[client]) for client in states.known}

    def on_end(self, label: str, summary: Summary) -> None:
        pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watcher]:
    out = tmp_path_factory.mktemp("memory") / "run"
    watcher = Watcher(out)
    fh.run(small(**RECIPE), out=out, progress=watcher)
    return out, watcher


def test_clients_keep_exemplars_of_their_own_classes_to_the_byte(finished: tuple[Path, Watcher]) -> None:
    """After each task as many as there are of each class that the client has met, at most `exemplars`."""
    job = build_federation(load_config(small(**RECIPE)))
    assert job.stream is not None
    labels, width = job.dataset.train.labels, job.model.width
    sets = set()
    for task in range(3):
        now = job.stream.at(2 * task + 1)
        assert now.ends
        for client, state in finished[1].kept[2 * task + 1].items():
            bank = Bank.of_state(state)
            assert bank is not None
            own = labels[torch.from_numpy(of_classes(job.shards[client], labels, now.seen))]
            expected = {label: min(EACH, int((own == label).sum())) for label in sorted(set(own.tolist()))}
            assert bank.counts == expected
            held = total_bytes({n: t for n, t in state.items() if n.startswith("memory/") and n != "memory/at"})
            formula = bank_bytes(list(expected.values()), input_bytes=INPUT_BYTES, width=width)
            assert held == formula
            sets.add(tuple(expected))
    assert len(sets) > 3  # nobody has what others have


def test_exemplars_are_real_samples_and_stay_once_their_task_is_over(finished: tuple[Path, Watcher]) -> None:
    job = build_federation(load_config(small(**RECIPE)))
    assert job.stream is not None
    split, first = job.dataset.train, job.stream.at(1)
    for client in fh.load_run(finished[0]).rounds[-1].cohort:
        state = finished[1].kept[5][client]
        bank, earlier = Bank.of_state(state), Bank.of_state(finished[1].kept[1].get(client, {}))
        assert bank is not None
        samples, _ = split.batch(torch.from_numpy(job.shards[client]))
        assert all(bool((samples == each).flatten(1).all(dim=1).any()) for each in bank.inputs)
        if earlier is not None:
            old = bank.chosen(torch.isin(bank.labels, torch.tensor(first.classes)))
            assert torch.equal(old.inputs, earlier.inputs)
            assert torch.equal(old.labels, earlier.labels)
            assert not torch.equal(old.features, earlier.features)  # the encoder has moved


def test_only_the_network_travels(finished: tuple[Path, Watcher]) -> None:
    """No byte of a memory goes either way: looking brings the encoder, training the rest of the network."""
    job = build_federation(load_config(small(**RECIPE)))
    weights = tensors_of(job.model)
    part = {
        name: total_bytes({n: t for n, t in weights.items() if n.startswith(name)})
        for name in ("encoder.", "reader.", "rows.", "scale", "memory.")
    }
    width, run = job.model.width, fh.load_run(finished[0])
    tasks = [task for task in run.clients if task.outcome == "completed"]
    holders: set[int] = set()  # of the encoder before the task
    for task in tasks:
        if task.kind == "look":
            assert task.bytes_down == part["encoder."]
            kept = Bank.of_state(finished[1].kept[task.round][task.client])
            assert kept is not None
            assert task.bytes_up == 8 * (2 + len(kept.counts))  # figures: samples, task, exemplars of each class
            holders = holders | {task.client} if task.round % 2 == 0 else holders
            continue
        seen = int(task.submodel.split("-")[1])
        before = part["encoder."] if task.submodel.startswith("keep") and task.client not in holders else 0
        assert task.bytes_down == part["reader."] + part["scale"] + part["rows."] * seen // 10 + before
        learnt = part["reader."] + part["scale"] + (0 if task.submodel.startswith("tune") else part["encoder."])
        own_rows = task.bytes_up - learnt
        assert 0 < own_rows <= part["rows."] + 2 * 10 * (width + 16)  # and a mask of whose rows they are
    assert {task.kind for task in tasks} == {"look", "train"}
    assert {task.submodel.split("-")[0] for task in tasks} == {"look", "learn", "keep", "tune"}
    stored = load_file(finished[0] / "model.safetensors")
    assert stored["memory.labels"].tolist() == [-1] * (10 * EACH)
    assert not stored["memory.features"].any()


def test_planned_is_measured_with_the_memory_in_it(finished: tuple[Path, Watcher]) -> None:
    run = fh.load_run(finished[0])
    assert {task.kind for task in run.clients} == {"look", "train"}
    for task in run.clients:
        assert task.outcome == "completed"
        assert task.planned_peak_bytes == task.measured_peak_bytes <= task.budget_bytes
    job = build_federation(load_config(small(**RECIPE)))
    steps = submodels_of(job)
    memory = bank_bytes([3] * 4, input_bytes=INPUT_BYTES, width=job.model.width)
    for name in ("look-4-{}", "learn-4-{}-8"):
        few, more = (steps.prepared(name.format(each)) for each in (2, 5))
        assert more.resident_bytes - few.resident_bytes == memory
        assert more.keep_all_peak_bytes - few.keep_all_peak_bytes == memory
        assert more.smallest().peak_bytes - few.smallest().peak_bytes >= memory


def test_a_client_answers_with_its_own_memory(finished: tuple[Path, Watcher]) -> None:
    job = build_federation(load_config(small(**RECIPE)))
    weights = load_file(finished[0] / "model.safetensors")
    assert job.method.is_personal
    for client in fh.load_run(finished[0]).rounds[-1].cohort:
        state = finished[1].kept[5][client]
        bank = Bank.of_state(state)
        assert bank is not None
        own = job.method.personal(job.model, weights, state)
        assert own.keys() == weights.keys()
        assert sorted(own["memory.labels"][own["memory.labels"] >= 0].tolist()) == sorted(bank.labels.tolist())
        # Nothing of the encoder moved in the last round, so features are those of the last look.
        torch.testing.assert_close(own["memory.features"][: len(bank)], bank.features, rtol=0, atol=2e-3)
        assert all(own[name] is weights[name] for name in weights if not name.startswith("memory."))
    assert job.method.personal(job.model, weights, {}) is weights


def test_without_a_stream_all_classes_are_one_task(tmp_path: Path) -> None:
    recipe = {**RECIPE, "rounds": 2, "stream": None}
    run = fh.run(small(**{name: value for name, value in recipe.items() if value is not None}), out=tmp_path / "run")
    assert {task.submodel for task in run.clients} == {f"look-10-{EACH}", f"learn-10-{EACH}-8"}
    assert all(task.outcome == "completed" for task in run.clients)


LITTLE: dict[str, Any] = {
    **RECIPE,
    "method": "replay",
    "method_options": {"exemplars": 8, "least_exemplars": 2, "tune_epochs": 3, "distillation": 0.0},
    "stream": {"tasks": 3, "rounds_each": 2},
    "train": {"batch_size": 8, "epochs": 2, "lr": 0.02},
    "fleet": {"clients_per_round": 5, "tiers": [{"name": "weak", "budget": "125%", "device": "laptop"}]},
    "planner": {"enabled": "off"},
}


def test_who_has_little_memory_keeps_fewer_exemplars(tmp_path: Path) -> None:
    """The same devices hold all exemplars while few classes have come, and then not; then they answer with few, too.

    They go through what they have kept, no more: epochs are of the samples and exemplars that they train on.
    """
    watcher = Watcher(tmp_path / "run")
    run = fh.run(small(**LITTLE), out=tmp_path / "run", progress=watcher)
    job = build_federation(load_config(small(**LITTLE)))
    assert job.stream is not None
    room: dict[int, set[int]] = {}
    for task in run.clients:
        assert task.outcome == "completed"
        kind, seen, each = task.submodel.split("-")
        room.setdefault(int(seen), set()).add(int(each))
        bank = Bank.of_state(watcher.kept[task.round][task.client])
        assert bank is not None
        assert max(bank.counts.values()) <= int(each)
        now = job.stream.at(task.round)
        own = len(of_classes(job.shards[task.client], job.dataset.train.labels, now.classes))
        if kind == "learn":
            assert task.steps == 2 * math.ceil((own + len(bank.without(now.classes))) / 8)
        elif kind == "tune":
            assert task.steps == 3 * math.ceil(len(bank) / 8)
    assert room == {4: {8}, 7: {4}, 10: {2}}


def test_who_has_less_memory_than_when_it_looked_gives_up_the_tails() -> None:
    job = build_federation(load_config(small(**LITTLE)))
    steps = submodels_of(job)
    method, station = job.method, steps.station("learn-4-2")
    shard = job.shards[0]
    labels = sorted(set(job.dataset.train.labels[torch.from_numpy(shard)].tolist()))
    seen = [*labels, *(label for label in range(10) if label not in labels)][:4]
    bank = bank_of([seen[0]] * 5 + [seen[1]], width=job.model.width)
    bank = replace(bank, inputs=torch.zeros(6, 1, 32, 32))
    client = LocalClient(
        station=station,
        split=job.dataset.train,
        shard=of_classes(shard, job.dataset.train.labels, seen),
        stretches=[Stretch(program=steps.prepared("learn-4-2").keep_all(), steps=1)],
        state=bank.as_state(),
    )
    task = ClientTask(round_index=0, client=0, weights=detached_copy(station.tensors), plan=None, seed=1,
                      work=replace(job.work, steps=1), submodel="learn-4-2",
                      options={"seen": seen, "classes": 10})  # fmt: skip
    update = method.train(task, client)
    assert update.state is not None
    left = Bank.of_state(update.state)
    assert left is not None
    assert left.counts == dict(sorted({seen[0]: 2, seen[1]: 1}.items()))
    held = Ledger(held={0: Holding(samples=9, counts=bank.counts, task=0)})
    assert held.trained([update]).held[0].counts == left.counts


def of_method(name: str, *, rounds_each: int, **changes: Any) -> dict[str, Any]:
    """Two tasks of it."""
    options = {"exemplars": 8, "tune_epochs": 1, **({"dim": 16, "neighbours": 4} if name == "mtn" else {})}
    stream = {"tasks": 2, "rounds_each": rounds_each}
    return small(**{**RECIPE, "method": name, "method_options": options, "stream": stream, "rounds": 2 * rounds_each,
                    "checkpoint_every": 10, **changes})  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param("knn", marks=pytest.mark.slow), "mtn", pytest.param("replay", marks=pytest.mark.slow)]
)
def test_the_clock_knows_every_pass(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a task was priced for, what it says, and the calls of its step are one number, exemplars among it."""
    calls = {"made": 0}
    step, train = LocalClient.step, AbstractMemory.train
    found: list[tuple[str, int | None, int, int]] = []

    def counted(self: LocalClient, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls["made"] += 1
        return step(self, x, y)

    def noted(self: AbstractMemory, task: ClientTask, client: ClientRuntime) -> Update:
        before = calls["made"]
        update = train(self, task, client)
        assert update.samples_seen == 8 * update.steps
        found.append((task.kind, task.work.steps, update.steps, calls["made"] - before))
        return update

    monkeypatch.setattr(LocalClient, "step", counted)
    monkeypatch.setattr(AbstractMemory, "train", noted)
    recipe = of_method(name, rounds_each=2)
    run = fh.run(recipe, out=tmp_path / "run")
    assert {kind for kind, *_ in found} == {"look", "train"}
    for _, priced, said, made in found:
        assert priced == said == made
    job = build_federation(load_config(recipe))
    assert job.stream is not None
    labels, last = job.dataset.train.labels, job.stream.at(3).classes
    looked = [task for task in run.clients if task.kind == "look" and task.round == 3]
    alone = [math.ceil(len(of_classes(job.shards[task.client], labels, last)) / 8) for task in looked]
    assert sum(task.steps for task in looked) > sum(alone), "exemplars take passes, too"


@pytest.mark.parametrize("name", ["knn", "mtn", "replay"])
def test_clients_test_it_on_their_own_data(name: str, tmp_path: Path) -> None:
    """With their own memories; the server's empty one does not travel."""
    recipe = of_method(name, rounds_each=1, evaluation={"clients": 2, "every": 1})
    run = fh.run(recipe, out=tmp_path / "run")
    weights = tensors_of(build_federation(load_config(recipe)).model)
    network = total_bytes({n: t for n, t in weights.items() if not n.startswith("memory.")})
    tested = [task for task in run.clients if task.kind == "evaluate"]
    assert len(tested) == 2 * 2
    for task in tested:
        assert (task.outcome, task.bytes_down) == ("completed", network)
        assert task.accuracy is not None
    assert (network < total_bytes(weights)) is (name != "replay")


@pytest.mark.slow
def test_who_can_hold_what_the_menu_promises_is_not_asked_in_vain(tmp_path: Path) -> None:
    """The menu does not know the batch, whose samples' own entries take eight bytes each."""
    options = {"exemplars": 2, "dim": 16, "neighbours": 4, "tune_epochs": 0, "distillation": 0.0}
    recipe = {**RECIPE, "method_options": options, "rounds": 1, "planner": {"enabled": "off"}}
    del recipe["stream"]
    job = build_federation(load_config(small(**recipe)))
    book = book_of(job, RunFolder(tmp_path), submodels_of(job), FINE_BUCKETS)
    assert book.menu == ("learn-10-2",)
    bare_bytes, full_bytes = (book.needed_bytes(None, name) for name in ("learn-10-2", "learn-10-2-8"))
    assert book.least_bytes("laptop") == bare_bytes < full_bytes
    runs = ((full_bytes, "learn-10-2-8"), (full_bytes - 1, "learn-10-2"), (bare_bytes, "learn-10-2"))
    for budget_bytes, submodel in runs:
        tiers = [{"name": "all", "budget": f"{budget_bytes} B", "device": "laptop"}]
        changed = recipe | {"fleet": {"clients_per_round": 2, "tiers": tiers}}
        run = fh.run(small(**changed), out=tmp_path / str(budget_bytes))
        assert {task.outcome for task in run.clients} == {"completed"}
        assert {task.submodel for task in run.clients if task.kind == "train"} == {submodel}
