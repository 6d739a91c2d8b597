"""The server's list of nodes: what they say is checked, numbers are kept, memory that was not there is not believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedhybrid.devices import load_profile, profile_table
from fedhybrid.errors import ConfigError

pytest.importorskip("flwr")

from fedhybrid.integrations.flower.deployed.nodes import Roll, count_of
from fedhybrid.integrations.flower.versions import library_versions

PROFILE = profile_table(load_profile("raspberry-pi-4"))
BYTES = {"resident_bytes": 100, "eager_peak_bytes": 1100}


def _said(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "budget": "50%",
        "device": PROFILE,
        "runtime_bytes": 3,
        "versions": library_versions(),
    } | changes


def _roll(folder: Path, clients: int = 3) -> Roll:
    return Roll(folder / "nodes.json", clients, library_versions())


def test_numbers_stay_with_names(tmp_path: Path) -> None:
    roll = _roll(tmp_path)
    assert [roll.enter(10 + n, _said(name)).client for n, name in enumerate("cab")] == [0, 1, 2]
    roll.leave(11)
    assert roll.enter(99, _said("a")).client == 1
    again = _roll(tmp_path)
    assert [again.enter(50 + n, _said(name)).client for n, name in enumerate("abc")] == [1, 2, 0]
    assert again.name_of(1) == "a"
    assert _roll(tmp_path / "none").name_of(1) == "client 1"


def test_a_node_may_want_a_number(tmp_path: Path) -> None:
    roll = _roll(tmp_path)
    assert roll.enter(1, _said("a", client=2)).client == 2
    assert roll.enter(2, _said("b")).client == 0
    with pytest.raises(ConfigError, match="which 'a' is already"):
        roll.enter(3, _said("c", client=2))
    with pytest.raises(ConfigError, match="the recipe has 0 to 2"):
        roll.enter(3, _said("c", client=3))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "../etc"}, "a name has letters"),
        ({"name": 7 * "long-name-"}, "a name has letters"),
        ({"name": [[]]}, "a name has letters"),
        ({"budget": "9" * 400 + "%"}, "must look like"),
        ({"budget": "1000001%"}, "at most 1,000,000"),
        ({"budget": 10**30}, "below 8 EiB"),
        ({"budget": "much"}, "much"),
        ({"budget": None}, "budget|bytes"),
        ({"device": "pi"}, "says nothing of its device"),
        ({"device": {**PROFILE, "memory_bytes": -1}}, "memory_bytes"),
        ({"device": {**PROFILE, "memory_bytes": 10**400}}, "memory_bytes"),
        ({"device": {**PROFILE, "op_overhead_s": 1e308}}, "op_overhead_s"),
        ({"device": {**PROFILE, "uplink_bytes_per_s": 1e-320}}, "uplink_bytes_per_s"),
        ({"device": {**PROFILE, "kinds": {}}}, "kinds"),
        ({"versions": None}, "of no version"),
        ({"versions": {"torch": [2], "fedhybrid": "0.1.0"}}, "torch of no version"),
        ({"versions": {"torch": "1.0", "fedhybrid": "0.1.0"}}, "torch 1.0, the server"),
    ],
)
def test_what_nodes_say_is_checked(wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    roll = _roll(tmp_path)
    with pytest.raises(ConfigError, match=says):
        roll.enter(1, _said("a") | wrong)
    assert roll.by_client == {}


def test_two_nodes_of_one_name_and_one_too_many(tmp_path: Path) -> None:
    roll = _roll(tmp_path, clients=1)
    roll.enter(1, _said("a"))
    with pytest.raises(ConfigError, match="another node that is connected has this name"):
        roll.enter(2, _said("a"))
    with pytest.raises(ConfigError, match="all are taken"):
        roll.enter(2, _said("b"))


def test_the_profile_is_called_as_the_node(tmp_path: Path) -> None:
    name = _roll(tmp_path).enter(1, _said("a")).device.name  # plans are files of that name
    assert name.startswith("a-")
    other = _roll(tmp_path).enter(1, _said("a", device=PROFILE | {"op_overhead_s": 1e-3})).device.name
    assert other.startswith("a-")
    assert other != name


def test_a_node_joins_when_it_says_what_it_holds(tmp_path: Path) -> None:
    roll = _roll(tmp_path)
    roll.enter(1, _said("a"))
    assert roll.ready == {}
    for wrong in (None, -1, True, "many", 2**53, 10**400):
        with pytest.raises(ConfigError, match="must say num_samples"):
            roll.joined(0, {"num_samples": wrong})
    roll.joined(0, {"num_samples": 5})
    assert list(roll.ready) == [0]


def test_a_lost_task_lowers_what_is_believed_until_five_have_come(tmp_path: Path) -> None:
    roll = _roll(tmp_path)
    node = roll.enter(1, _said("a"))
    assert node.budget_bytes(**BYTES) == 600
    node.lost(needed_bytes=500, least_bytes=200)
    assert node.budget_bytes(**BYTES) == 375
    node.lost(needed_bytes=370, least_bytes=300)
    assert node.budget_bytes(**BYTES) == 300  # the smallest plan is tried before it is given up
    roll.leave(1)
    node = roll.enter(2, _said("a"))
    assert node.budget_bytes(**BYTES) == 300  # a restart does not bring memory back
    for _ in range(4):
        node.succeeded()
    assert node.budget_bytes(**BYTES) == 300
    node.succeeded()
    assert node.budget_bytes(**BYTES) == 600


def test_promises_change_and_nonsense_is_not_heard(tmp_path: Path) -> None:
    roll = _roll(tmp_path)
    node = roll.enter(1, _said("a"))
    changes = roll.changes
    for nonsense in (None, True, "lots", [1], -5, 10**30, "9" * 400 + "%", "1" * 20_000 + "!"):
        roll.promises(0, nonsense)
    assert (node.budget_bytes(**BYTES), roll.changes) == (600, changes)
    roll.promises(0, 400)
    assert node.budget_bytes(**BYTES) == 400
    roll.promises(2, 400)  # nobody


@pytest.mark.parametrize("found", [0, 5, 2**63 - 1])
def test_a_number_is_counted(found: int) -> None:
    assert count_of(found) == found


@pytest.mark.parametrize("found", [-1, 2**63, 10**400, True, 1.0, "5", None, float("inf")])
def test_what_is_no_number_counts_as_none(found: Any) -> None:
    assert count_of(found) == 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "nodes.json").write_text("[1")
    with pytest.raises(ConfigError, match=r"nodes\.json is damaged"):
        _roll(tmp_path)
