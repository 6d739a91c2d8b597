"""Named tensors and a header as one piece of bytes: everything comes back, whatever shares memory with what."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.scene_parts import same_tensors
from tests.update_parts import models

from fedhybrid.engine.bundle import pack_bundle, read_bundle, unpack_bundle
from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors

T = torch.arange(12.0).reshape(3, 4)

GROUPS: dict[str, dict[str, Tensors]] = {
    "no group": {},
    "an empty group": {"a": {}, "b": {"x": T}},
    "one tensor in two groups": {"a": {"x": T}, "b": {"y": T, "z": torch.ones(2)}},
    "one tensor twice in a group": {"a": {"x": T, "y": T}},
    "the same memory by another name": {"a": {"x": T}, "b": {"y": T.detach()}},
    "the same memory in another shape": {"a": {"x": T, "flat": T.view(12)}},
    "the same memory as another type": {"a": {"x": T, "bits": T.view(torch.int32)}},
    "a part": {"a": {"x": T, "row": T[1]}, "b": {"row": T[1]}},
    "only a part": {"a": {"row": T[1]}},
    "transposed": {"a": {"x": T, "t": T.t()}},
    "expanded": {"a": {"x": torch.tensor([2.5]).expand(4)}},
    "scalars": {"a": {"x": torch.tensor(3), "y": torch.tensor(2.5, dtype=torch.float64), "z": torch.tensor(True)}},
    "no elements": {"a": {"x": torch.empty(0), "y": torch.empty(0), "z": torch.empty(3, 0, 2, dtype=torch.int64)}},
    "odd names": {"a": {"": T, "x/y": T[0], "same": T[1], "ü": T[2]}, "shard": {"": torch.tensor([1, 2])}},
    "a parameter": {"a": {"x": torch.nn.Parameter(torch.ones(2)).detach()}},
}


def same_groups(one: dict[str, Tensors], other: dict[str, Tensors]) -> bool:
    return list(one) == list(other) and all(same_tensors(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_comes_back(name: str, tmp_path: Path) -> None:
    header = {"round": 3, "at_s": 0.1 + 0.2, "nothing": None, "list": [1, "two", {"three": 3}]}
    packed = pack_bundle(header, GROUPS[name])
    assert pack_bundle(header, GROUPS[name]) == packed
    (tmp_path / "b").write_bytes(packed)
    for found, groups in (unpack_bundle(packed), read_bundle(tmp_path / "b")):
        assert found == header
        assert same_groups(groups, GROUPS[name])


@given(groups=st.dictionaries(st.text("abc", max_size=3), models(), max_size=3))
def test_all_kinds_of_tensors(groups: dict[str, Tensors]) -> None:
    assert same_groups(unpack_bundle(pack_bundle({}, groups))[1], groups)


def test_what_is_no_json_is_only_taken_where_asked_for() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        pack_bundle({"a": math.inf}, {})
    header, _ = unpack_bundle(pack_bundle({"a": [math.inf, -math.inf, math.nan]}, {}, allow_nan=True))
    assert repr(header["a"]) == "[inf, -inf, nan]"


def test_what_is_shared_is_stored_once() -> None:
    large = torch.zeros(100_000)
    once = len(pack_bundle({}, {"a": {"x": large}}))
    assert len(pack_bundle({}, {"a": {"x": large}, "b": {"x": large}, "c": {"y": large}})) < once + 1000


def test_only_what_is_seen_of_a_tensor_is_stored() -> None:
    large = torch.zeros(100_000)
    assert len(pack_bundle({}, {"a": {"x": large[:5], "y": large[::50_000]}})) < 1000


def test_what_is_unpacked_can_be_written_to() -> None:
    _, groups = unpack_bundle(pack_bundle({}, {"a": {"x": torch.zeros(3)}, "b": {"x": torch.ones(3)}}))
    groups["a"]["x"].add_(5)
    assert groups["b"]["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "text", "no header"])
def test_damaged_file_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    packed = pack_bundle({"a": 1}, {"a": {"x": T}})
    other = {
        "cut": packed[:-5],
        "empty": b"",
        "other": packed.replace(b"fedhybrid", b"fedhybris"),
        "text": b"no safetensors at all",
        "no header": packed.replace(b"header", b"headed"),
    }[damage]
    assert other != packed
    (tmp_path / "b").write_bytes(other)
    with pytest.raises(ConfigError, match="is no checkpoint of a run") as caught:
        read_bundle(tmp_path / "b")
    assert str(tmp_path / "b") in str(caught.value)
    assert len(caught.value.problems) == 1
