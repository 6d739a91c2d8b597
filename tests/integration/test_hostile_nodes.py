"""Nodes that answer with figures and forms that no device has: the run goes on, and the others' work counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.run_parts import small

import fedhybrid as fh

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Message, RecordDict

from fedhybrid.integrations.flower.deployed.open_tasks import Patience
from fedhybrid.integrations.flower.deployed.world import deployed
from fedhybrid.integrations.flower.messages import Letter, letter_of, record_of
from fedhybrid.integrations.flower.simulated import app as client_module
from fedhybrid.integrations.flower.simulated.app import client_app
from fedhybrid.integrations.flower.simulated.local_grid import LocalGrid

BIG = 10**400
DEEP = "[" * 100_000 + "]" * 100_000
HONEST = 2
Change = Callable[[Letter], Letter | str]  # a text stands for the letter as it is


def header(**changes: Any) -> Change:
    return lambda letter: replace(letter, header={**letter.header, **changes})


def inside(key: str, **changes: Any) -> Change:
    return lambda letter: replace(letter, header={**letter.header, key: {**letter.header[key], **changes}})


def instead_of_tensors(**groups: Any) -> Change:
    """The groups as JSON in the header, and none of that name beside it."""

    def change(letter: Letter) -> Letter:
        left = {name: tensors for name, tensors in letter.groups.items() if name not in groups}
        told = {**letter.header, "update": {**letter.header["update"], **groups}}
        return replace(letter, header=told, groups=left)

    return change


def rates(per_s: float) -> Change:
    def change(letter: Letter) -> Letter:
        kinds = {kind: {"flops_per_s": per_s, "bytes_per_s": per_s} for kind in letter.header["device"]["kinds"]}
        return replace(letter, header={**letter.header, "device": {**letter.header["device"], "kinds": kinds}})

    return change


def weights(made: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(letter: Letter) -> Letter:
        changed = {name: made(tensor) for name, tensor in letter.groups["weights"].items()}
        return replace(letter, groups={**letter.groups, "weights": changed})

    return change


def group(name: str, tensors: Mapping[str, torch.Tensor]) -> Change:
    return lambda letter: replace(letter, groups={**letter.groups, name: dict(tensors)})


def text(told: str) -> Change:
    return lambda letter: told


AT_THE_DOOR: dict[str, Change] = {
    "a share of 400 digits": header(budget="9" * 400 + "%"),
    "a share of a million and one per cent": header(budget="1000001%"),
    "a budget of 31 digits": header(budget=10**30),
    "a budget that takes long to read": header(budget="1" * 20_000 + "!"),
    "operators that take for ever": inside("device", op_overhead_s=1e308),
    "rates next to nothing": rates(1e-300),
    "a link next to nothing": inside("device", uplink_bytes_per_s=1e-320),
    "a memory of 400 digits": inside("device", memory_bytes=BIG),
    "a deep profile": inside("device", memory_bytes=[[[[[[[[]]]]]]]]),
    "a deep letter": text(f'{{"format": 1, "kind": "here", "header": {{"a": {DEEP}}}}}'),
    "half a character": text('{"format": 1, "kind": "here", "header": {"name": "\\ud800"}}'),
    "no letter": text("{"),
}
ON_JOINING: dict[str, Change] = {
    "samples of 31 digits": header(num_samples=10**30),
    "samples beyond what floats count": header(num_samples=2**53),
    "half a sample": header(num_samples=0.5),
    "a deep letter": text(f'{{"format": 1, "kind": "joined", "header": {{"num_samples": {DEEP}}}}}'),
}
OF_A_TASK: dict[str, Change] = {
    "a loss of 400 digits": inside("update", loss_mean=BIG),
    "metrics of 400 digits": inside("update", metrics={"accuracy": BIG}),
    "metrics that are no table": inside("update", metrics=[1]),
    "samples of 400 digits": inside("update", num_samples=BIG),
    "samples seen of 400 digits": inside("update", samples_seen=BIG),
    "steps beyond what floats count": inside("update", steps=2**53),
    "a peak of 400 digits": inside("update", measured_peak_bytes=BIG),
    "talk without end": inside("talk", asked_bytes=float("inf")),
    "talk that gives bytes back": inside("talk", asked_bytes=-(10**12)),
    "weights that are a text": instead_of_tensors(weights="abc", masks="abc"),
    "weights that are a table": instead_of_tensors(weights={"a": 1}),
    "masks that are a text": instead_of_tensors(masks="abc"),
    "masks that are a table": instead_of_tensors(masks={"a": [1]}),
    "a state that is a text": instead_of_tensors(state="abc"),
    "weights of whole numbers": weights(lambda tensor: tensor.to(torch.int64)),
    "weights in eight bits": weights(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "complex weights": weights(lambda tensor: tensor.to(torch.complex64)),
    "a payload that is junk": group("payload", {"": torch.zeros(10, dtype=torch.uint8)}),
    "a payload of floats": group("payload", {"": torch.zeros(10)}),
    "a deep letter": text(f'{{"format": 1, "kind": "delivery", "header": {{"update": {DEEP}}}}}'),
}
HARMLESS: dict[str, Change] = {
    "seconds of 400 digits": header(seconds=BIG),
    "seconds that are no number": header(seconds=float("nan")),
    "a budget of 31 digits": header(budget=10**30),
    "a share of 400 digits": header(budget="9" * 400 + "%"),
    "a program of 400 digits": header(runtime_bytes=BIG),
    "what the server trained": group("served", {"head.bias": torch.full((10,), float("nan"))}),
}


def run_with(changes: dict[str, Change], kind: str, out: Path) -> tuple[Any, list[str]]:
    """One round of two honest nodes and one for each change, made to the node's first letter of this kind."""
    client_module._nodes.clear()
    count = HONEST + len(changes)
    facts = [{"partition-id": n, "budget": "100%", "device": "raspberry-pi-4", "name": f"pi-{n}"} for n in range(count)]
    grid = LocalGrid(client_app, {100 + n: fact for n, fact in enumerate(facts)}, duration_s=lambda *_: 1.0)
    normal, of_node = grid._app, dict(enumerate(changes.values(), start=100 + HONEST))

    def app(message: Message, context: Any) -> Message:
        reply = normal(message, context)
        letter = letter_of(reply.content)
        change = of_node.get(message.metadata.dst_node_id)
        if change is None or letter.kind != kind:
            return reply
        changed = change(letter)
        if isinstance(changed, Letter):
            return Message(record_of(changed), reply_to=message)
        return Message(RecordDict({"fedhybrid": ConfigRecord({"letter": changed})}), reply_to=message)

    grid._app = app
    base = small(method="fedavg", policy="uniform", rounds=1, fleet={"clients_per_round": count})
    table = base | {"data": {**base["data"], "clients": count, "alpha": 100.0}}
    news: list[str] = []
    there = deployed(
        grid,
        nodes=HONEST if kind in ("here", "joined") else count,
        within_s=30.0,
        patience=Patience(task_s=20.0, ping_s=float("inf")),
        clock=grid.now,
        wait=lambda seconds: grid.advance_to(grid.now() + max(seconds, 1e-3)),
        on_news=news.append,
    )
    return fh.run(table, out=out, assemble=there), news


@pytest.mark.parametrize(("kind", "changes"), [("here", AT_THE_DOOR), ("joined", ON_JOINING)])
def test_who_comes_with_nonsense_is_not_let_in(kind: str, changes: dict[str, Change], tmp_path: Path) -> None:
    result, news = run_with(changes, kind, tmp_path / "run")
    refused = [line for line in news if line.startswith("refused: ")]
    assert len(refused) >= len(changes), refused
    assert all(len(line) < 1000 for line in refused)
    assert {client.tier for client in result.clients} == {"pi-0", "pi-1"}
    assert [client.outcome for client in result.clients] == ["completed"] * HONEST
    assert result.rounds[0].completed == HONEST


def test_a_task_that_comes_back_as_nonsense_is_corrupt(tmp_path: Path) -> None:
    result, _ = run_with(OF_A_TASK, "delivery", tmp_path / "run")
    names = dict(enumerate(OF_A_TASK, start=HONEST))
    found = {names.get(task.client, "honest"): task.outcome for task in result.clients}
    assert found == {"honest": "completed"} | dict.fromkeys(OF_A_TASK, "corrupt")
    assert all(len(task.detail) < 1000 for task in result.clients)
    assert result.rounds[0].completed == HONEST


def test_nonsense_beside_good_work_is_not_heard(tmp_path: Path) -> None:
    result, _ = run_with(HARMLESS, "delivery", tmp_path / "run")
    assert {task.outcome for task in result.clients} == {"completed"}
    assert result.rounds[0].completed == HONEST + len(HARMLESS)
    assert all(0 <= (task.runtime_bytes or 0) < 2**63 for task in result.clients)
