"""Stored records: they come back as they were, and every fault of a line is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedhybrid.errors import ConfigError
from fedhybrid.records import ClientRecord, RoundRecord, Summary, append_jsonl, as_json, from_json, read_jsonl

RECORD = RoundRecord(
    round=1, virtual_time_s=2, accuracy=0.5, loss=None, train_loss=1.5, cohort=[3, 4], completed=2, failed=0,
    bytes_up=10, bytes_down=20, wall_time_s=0.25,
)  # fmt: skip

NEWER = ("late", "staleness_mean", "energy_j", "violations", "client_accuracy")


def test_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first = append_jsonl(path, [RECORD, RECORD])
    assert append_jsonl(path, [RECORD]) == path.stat().st_size
    assert read_jsonl(RoundRecord, path) == [RECORD] * 3
    assert read_jsonl(RoundRecord, path, first) == [RECORD] * 2
    assert read_jsonl(RoundRecord, tmp_path / "none") == []


@pytest.mark.parametrize(
    ("was", "now", "problem"),
    [
        ('"accuracy": 0.5', '"accuracy": "high"', "'accuracy' must be float | None, found 'high'"),
        ('"accuracy": 0.5', '"accuracy": NaN', "NaN is no JSON"),
        ('"completed": 2', '"completed": true', "'completed' must be int, found True"),
        ('"completed": 2', '"completed": 2.0', "'completed' must be int, found 2.0"),
        ('"completed": 2', '"complete": 2', "'completed' is missing"),
        ('"cohort": [3, 4]', '"cohort": [3, "a"]', "'cohort' must be list[int]"),
        ('"loss": null', '"loss": "?"', "'loss' must be float | None"),
        ('"bytes_up": 10', '"bytes_up": null', "'bytes_up' must be int, found None"),
        ('"late": 0', '"late": null', "'late' must be int, found None"),
        ('"late": 0', '"lade": 0', "'lade' is no field of it"),
        ("{", "[", "Expecting"),
    ],
)
def test_faults(was: str, now: str, problem: str) -> None:
    text = as_json(RECORD)
    assert was in text
    with pytest.raises(ConfigError) as caught:
        from_json(RoundRecord, text.replace(was, now), where="f:7")
    assert problem in caught.value.problems[0]
    assert all(each.startswith("f:7: not a RoundRecord record: ") for each in caught.value.problems)


def test_what_older_records_do_not_say_has_a_default() -> None:
    older = {name: value for name, value in json.loads(as_json(RECORD)).items() if name not in NEWER}
    assert len(older) == len(vars(RECORD)) - len(NEWER)
    assert from_json(RoundRecord, json.dumps(older), where="f") == RECORD


def test_every_kind_comes_back() -> None:
    client = ClientRecord(
        round=0, client=3, tier="weak", device="laptop", outcome="late", budget_bytes=5, planned_peak_bytes=None,
        measured_peak_bytes=None, plan="p", samples=0, steps=0, train_loss=None, virtual_time_s=0.1 + 0.2,
        detail="not back", kind="evaluate", at_s=3.5, staleness=2, bytes_up=7, energy_j=1.5, violations=1, switches=4,
        accuracy=0.25,
    )  # fmt: skip
    assert from_json(ClientRecord, as_json(client), where="f") == client
    summary = Summary(
        method="m", policy="p", dataset="d", model="n", seed=1, rounds=2, clients=3, final_accuracy=0.5,
        best_accuracy=0.5, virtual_time_s=1.0, wall_time_s=1.0, time_to_accuracy_s={"0.50": None}, bytes_up=1,
        bytes_down=1, participation={"weak": {"clients": 3}}, budget_violations=0, failures={"late": 1},
        resident_bytes=1, eager_peak_bytes=1, runtime_bytes=1, schedule="semi-asynchronous",
        accuracy_by_tier={"weak": 0.5, "strong": None}, worst_tenth_accuracy=0.1, fairness_clients=3,
    )  # fmt: skip
    assert from_json(Summary, as_json(summary), where="f") == summary


def test_faults_are_said_together() -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(RoundRecord, as_json(RECORD).replace("0.5", '"a"').replace("10", '"b"'), where="f")
    assert len(caught.value.problems) == 2


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"[]\n" + as_json(RECORD).encode() + b"\n\xff\nhalf a li")
    with pytest.raises(ConfigError) as caught:
        read_jsonl(RoundRecord, path)
    assert [problem.removeprefix(str(path))[:3] for problem in caught.value.problems] == [":1:", ":3:"]
