"""Stored records: they come back as they were, and every fault of a line is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhybrid.errors import ConfigError
from fedhybrid.records import RoundRecord, append_jsonl, as_json, from_json, read_jsonl

RECORD = RoundRecord(
    round=1, virtual_time_s=2, accuracy=0.5, loss=None, train_loss=1.5, cohort=[3, 4], completed=2, failed=0,
    bytes_up=10, bytes_down=20, wall_time_s=0.25,
)  # fmt: skip


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
        ('"accuracy": 0.5', '"accuracy": "high"', "'accuracy' must be float, found 'high'"),
        ('"accuracy": 0.5', '"accuracy": NaN', "NaN is no JSON"),
        ('"completed": 2', '"completed": true', "'completed' must be int, found True"),
        ('"completed": 2', '"completed": 2.0', "'completed' must be int, found 2.0"),
        ('"completed": 2', '"complete": 2', "'completed' is missing"),
        ('"cohort": [3, 4]', '"cohort": [3, "a"]', "'cohort' must be list[int]"),
        ('"loss": null', '"loss": "?"', "'loss' must be float | None"),
        ('"accuracy": 0.5', '"accuracy": null', "'accuracy' must be float, found None"),
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
