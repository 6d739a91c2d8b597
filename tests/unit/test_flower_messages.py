"""What server and device say to each other: letters, and what comes of letters that are none."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhybrid.engine.labour import Job
from fedhybrid.engine.parcels import delivery_from, delivery_parts, job_from, job_parts, read_bundle_bytes
from fedhybrid.engine.traffic import Delivery
from fedhybrid.engine.walk import Leg
from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientTask, LocalWork, Update

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedhybrid.integrations.flower.messages import FORMAT, Letter, letter_of, record_of

TASK = ClientTask(
    round_index=3,
    client=7,
    weights={"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(4), "h": torch.ones(2, dtype=torch.bfloat16)},
    work=LocalWork(epochs=1, batch_size=8, lr=0.1),
    plan="pi-9MiB",
    seed=11,
    options={"depth": 2},
)
UPDATE = Update(
    client=7, round_index=3, weights={"w": torch.zeros(2, 3)}, num_samples=20, samples_seen=24, steps=3, loss_mean=0.5,
    squared_loss_sum=7.5, measured_peak_bytes=1000, masks={"w": torch.ones(2, 3, dtype=torch.bool)},
    metrics={"tasks": 1.0}, state={"error": torch.ones(3)},
)  # fmt: skip


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _through(letter: Letter) -> Letter:
    return letter_of(RecordDict.inflate(record_of(letter).deflate(), record_of(letter).children))


def test_a_job_arrives_as_it_was_sent() -> None:
    job = Job(
        task=TASK, device="pi", legs=(Leg(plan="pi-9MiB", steps=3), Leg(plan=None, steps=1)), shard=np.arange(4),
        state={"error": torch.ones(3)}, at_s=5.0, evaluation_batch=2,
    )  # fmt: skip
    header, groups = job_parts(job)
    letter = _through(Letter(kind="job", header=header, groups=groups, plans={"pi-9MiB": "{}"}))
    assert (letter.kind, dict(letter.plans)) == ("job", {"pi-9MiB": "{}"})
    again = job_from(letter.header, letter.groups)
    assert _same(again.task.weights, TASK.weights)
    assert dataclasses.replace(again.task, weights=TASK.weights) == TASK
    assert (again.device, again.legs, again.evaluation_batch) == (job.device, job.legs, 2)
    assert again.shard.tolist() == [0, 1, 2, 3]
    assert _same(again.state, job.state)
    lean = job_from(letter.header, {"model": TASK.weights})
    assert (len(lean.shard), lean.state) == (0, {})


@pytest.mark.parametrize("payload", [None, b"", b"packed"])
def test_a_delivery_arrives_as_it_was_sent(payload: bytes | None) -> None:
    delivery = Delivery(update=UPDATE, payload=payload, served={"v": torch.ones(2)}, asked_bytes=5, answered_bytes=6)
    header, groups = delivery_parts(delivery)
    letter = _through(Letter(kind="delivery", header=header, groups=groups))
    assert _same(delivery_from(letter.header, letter.groups).served, delivery.served)
    again = delivery_from(letter.header, letter.groups, TASK)
    assert (again.payload, again.asked_bytes, again.answered_bytes) == (payload, 5, 6)
    assert again.served == {}  # no device says what the server has trained
    for name in ("weights", "masks", "state"):
        assert _same(getattr(again.update, name), getattr(UPDATE, name))
    plain = {"weights": {}, "masks": {}, "state": None}
    assert dataclasses.replace(again.update, **plain) == dataclasses.replace(UPDATE, **plain)


@pytest.mark.parametrize(
    "wrong",
    [
        {"client": 8},
        {"round_index": 2},
        {"kind": "evaluate"},
        {"steps": -1},
        {"steps": 1.5},
        {"num_samples": "many"},
        {"measured_peak_bytes": True},
        {"loss_mean": None},
        {"metrics": {"accuracy": float("nan")}},
        {"metrics": {"accuracy": "high"}},
        {"metrics": {"accuracy": 10**400}},
        {"metrics": ["accuracy"]},
        {"num_samples": 2**53},
        {"samples_seen": 10**400},
        {"steps": 2**53},
        {"measured_peak_bytes": 2**63},
        {"loss_mean": 10**400},
        {"squared_loss_sum": True},
        {"round_index": 3.0},
        {"surprise": 1},
        {"weights": "abc"},
        {"masks": {"w": [1]}},
        {"state": "abc"},
    ],
)
def test_figures_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    header, groups = delivery_parts(Delivery(update=UPDATE))
    header["update"] |= wrong
    with pytest.raises(ConfigError, match="what came is not an update") as caught:
        delivery_from(header, {name: group for name, group in groups.items() if name not in wrong}, TASK)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("wrong", [-1, 2**63, float("inf"), 1.5, True, "5", None])
@pytest.mark.parametrize("name", ["asked_bytes", "answered_bytes"])
def test_talk_is_counted_in_bytes(name: str, wrong: Any) -> None:
    header, groups = delivery_parts(Delivery(update=UPDATE))
    header["talk"][name] = wrong
    with pytest.raises(ConfigError, match="it has talked for"):
        delivery_from(header, groups, TASK)


def test_figures_are_floats_and_a_payload_is_bytes() -> None:
    header, groups = delivery_parts(Delivery(update=UPDATE, payload=b"packed"))
    header["update"] |= {"loss_mean": 1, "metrics": {"tasks": 2}}
    update = delivery_from(header, groups, TASK).update
    assert [type(each) for each in (update.loss_mean, update.metrics["tasks"])] == [float, float]
    groups["payload"] = {"": torch.ones(6)}
    with pytest.raises(ConfigError, match=r"its payload is torch\.float32"):
        delivery_from(header, groups, TASK)


def test_training_that_diverged_may_say_so() -> None:
    header, groups = delivery_parts(Delivery(update=dataclasses.replace(UPDATE, loss_mean=float("inf"))))
    assert delivery_from(json.loads(json.dumps(header)), groups, TASK).update.loss_mean == float("inf")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON, _JSON)
def test_no_header_breaks_the_reader(task: Any, update: Any) -> None:
    with pytest.raises(ConfigError):
        job_from({"task": task, "device": "", "legs": [], "evaluation_batch": 0}, {"model": {}})
    with pytest.raises(ConfigError):
        delivery_from({"update": update, "talk": {"asked_bytes": 0, "answered_bytes": 0}}, {}, TASK)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(packed: bytes) -> None:
    with pytest.raises(ConfigError, match="what came is not a bundle"):
        read_bundle_bytes(packed)


DEEP = "[" * 100_000 + "]" * 100_000


def _bundle(content: str) -> bytes:
    head = json.dumps({"__metadata__": {"fedhybrid": content}}).encode()
    return len(head).to_bytes(8, "little") + head


@pytest.mark.parametrize(
    "content",
    [
        f'{{"header": {DEEP}, "same": {{}}, "groups": []}}',
        f'{{"header": {{}}, "same": {{}}, "groups": {DEEP}}}',
        '{"header": {}, "same": {}, "groups": ["\\ud800"]}',
        '{"header": {}, "same": {"a/b": "c"}, "groups": []}',
        '{"header": {}, "same": 1, "groups": []}',
        f'{{"header": {"9" * 5000}, "same": {{}}, "groups": []}}',
    ],
)
def test_no_header_of_a_bundle_breaks_the_reader(content: str) -> None:
    with pytest.raises(ConfigError, match="what came is not a bundle") as caught:
        read_bundle_bytes(_bundle(content))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (RecordDict(), "none of FedHybrid's"),
        (
            RecordDict({"fedhybrid": ConfigRecord({"letter": f'{{"format": 1, "kind": "x", "header": {DEEP}}}'})}),
            "none of FedHybrid's",
        ),
        (
            RecordDict({"fedhybrid": ConfigRecord({"letter": '{"format": 1, "kind": "\\ud800", "header": {}}'})}),
            "none of FedHybrid's",
        ),
        (RecordDict({"fedhybrid": ConfigRecord({"letter": "{"})}), "none of FedHybrid's"),
        (RecordDict({"fedhybrid": ConfigRecord({"letter": "[1]"})}), "none of FedHybrid's"),
        (
            RecordDict({"fedhybrid": ConfigRecord({"letter": '{"format": 99, "kind": "job", "header": {}}'})}),
            "format 99",
        ),
    ],
)
def test_other_peoples_messages_are_named(content: RecordDict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        letter_of(content)


def test_tensors_of_another_form_are_named() -> None:
    content = record_of(Letter(kind="answer", groups={"answer": {"x": torch.ones(1)}}))
    content["tensors"] = ArrayRecord({"bundle": Array(np.ones(3))})
    with pytest.raises(ConfigError, match=r"not of the form fedhybrid\.bundle"):
        letter_of(content)
    told = json.dumps({"format": FORMAT, "kind": "answer", "header": {}})
    array = Array("uint8", (3,), "fedhybrid.bundle", b"abc")
    content = RecordDict({"fedhybrid": ConfigRecord({"letter": told}), "tensors": ArrayRecord({"bundle": array})})
    with pytest.raises(ConfigError, match="what came is not a bundle"):
        letter_of(content)
