"""What clients keep: in step with the checkpoint, whatever moment a process was killed at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scene_parts import same_tensors

from fedhybrid.engine.states import ClientStates
from fedhybrid.errors import ConfigError
from fedhybrid.tree import Tensors

ODD: dict[str, Tensors] = {
    "plain": {"w": torch.ones(3), "deep/name": torch.tensor(4)},
    "one tensor twice": {"a": (shared := torch.ones(4)), "b": shared},
    "views": {"a": shared, "b": shared.view(2, 2), "c": shared[:1], "d": shared.detach()},
    "transposed": {"a": torch.arange(6.0).view(2, 3).t()},
    "no tensor": {},
    "no elements": {"a": torch.empty(0), "b": torch.empty(0)},
}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def state(value: float) -> Tensors:
    return {"w": torch.full((3,), value)}


def test_nothing_kept_leaves_nothing_behind(tmp_path: Path) -> None:
    states = ClientStates(tmp_path / "s", {})
    assert states[5] == {}
    assert states.write() == {}
    states.clear_left_overs()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", sorted(ODD))
def test_comes_back(name: str, tmp_path: Path) -> None:
    states = ClientStates(tmp_path / "s", {})
    states[7] = ODD[name]
    assert same_tensors(states[7], ODD[name])  # before it is stored
    numbers = states.write()
    assert list(numbers) == ["7"]
    for reader in (states, ClientStates(tmp_path / "s", numbers)):
        assert same_tensors(reader[7], ODD[name])
        assert reader[8] == {}


def test_only_what_has_changed_is_written(tmp_path: Path) -> None:
    states = ClientStates(tmp_path / "s", {})
    states[1], states[2] = state(1.0), state(2.0)
    first = states.write()
    before = {name: (tmp_path / "s" / name).stat().st_ino for name in files(tmp_path / "s")}
    assert states.write() == first  # nothing new
    states[2] = state(3.0)
    second = states.write()
    assert second["1"] == first["1"]
    assert second["2"] > first["2"]
    assert before.keys() < files(tmp_path / "s")  # the old one is there until the checkpoint is
    states.tidy()
    assert files(tmp_path / "s") == {f"{client}.{number}.safetensors" for client, number in second.items()}
    assert (tmp_path / "s" / f"1.{second['1']}.safetensors").stat().st_ino == before[f"1.{first['1']}.safetensors"]


def test_killed_between_states_and_checkpoint(tmp_path: Path) -> None:
    states = ClientStates(tmp_path / "s", {})
    states[1] = state(1.0)
    stored = states.write()
    states.tidy()
    states[1], states[4] = state(2.0), state(4.0)
    states.write()  # and killed before the checkpoint
    (tmp_path / "s" / "9.9.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "s" / "notes.txt").write_text("somebody's own")
    again = ClientStates(tmp_path / "s", stored)
    assert same_tensors(again[1], state(1.0))
    assert again[4] == {}
    again.clear_left_overs()
    assert files(tmp_path / "s") == {f"1.{stored['1']}.safetensors", "notes.txt"}
    again[1] = state(5.0)
    assert again.write()["1"] > stored["1"]


def test_killed_after_the_checkpoint_before_the_tidying(tmp_path: Path) -> None:
    states = ClientStates(tmp_path / "s", {})
    states[1] = state(1.0)
    states.write()
    states[1] = state(2.0)
    stored = states.write()
    again = ClientStates(tmp_path / "s", stored)
    again.clear_left_overs()
    assert files(tmp_path / "s") == {f"1.{stored['1']}.safetensors"}
    assert same_tensors(again[1], state(2.0))


@pytest.mark.parametrize("content", [None, b"", b"half of a file"])
def test_missing_or_damaged_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    states = ClientStates(tmp_path, {})
    states[3] = state(1.0)
    numbers = states.write()
    path = tmp_path / f"3.{numbers['3']}.safetensors"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="which client 3 goes on from, cannot be read") as caught:
        ClientStates(tmp_path, numbers)[3]
    assert str(path) in str(caught.value)


Moves = st.lists(st.tuples(st.sampled_from(["set", "store", "kill"]), st.integers(0, 3), st.integers(0, 99)))


@settings(max_examples=40)
@given(moves=Moves)
def test_after_any_kill_it_is_as_the_checkpoint_says(moves: list[tuple[str, int, int]], tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    """Random sets, checkpoints and kills, against two dictionaries."""
    folder = tmp_path_factory.mktemp("states")
    states, numbers = ClientStates(folder, {}), {}
    now: dict[int, int] = {}
    stored: dict[int, int] = {}
    for move, client, value in moves:
        if move == "set":
            states[client] = state(value)
            now[client] = value
        elif move == "store":
            numbers, stored = states.write(), dict(now)
            if value % 2:  # else killed before
                states.tidy()
        else:
            if value % 2:
                states.write()  # killed after this, before the checkpoint
            states, now = ClientStates(folder, numbers), dict(stored)
            states.clear_left_overs()
        for each in range(4):
            assert same_tensors(states[each], state(now[each]) if each in now else {})
