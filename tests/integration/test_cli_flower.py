"""`fedhybrid flower`: what it answers to people who forget something, or whose Flower is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from tests.federation_parts import recipe
from tests.integration.cli_runner import Ran, assert_refused, fedhybrid

from fedhybrid.cli.flower import FLOWER_COMMANDS

pytest.importorskip("flwr")

HIDE = """
import importlib.metadata
from importlib.machinery import PathFinder as finder
find, look_up = finder.find_spec, importlib.metadata.version
finder.find_spec = lambda name, *more: None if name.partition(".")[0] == hidden else find(name, *more)
def version(name):
    if name != "flwr":
        return look_up(name)
    if said is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return said
importlib.metadata.version = version
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe()))
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment") / "keys"
    assert fedhybrid("flower", "keys", folder, "--nodes", "pi-1").code == 0
    return folder


def one_line(ran: Ran, expected: str) -> None:
    assert_refused(ran, expected)
    assert len(ran.errors) == 1, ran.err


class TestHelp:
    def test_of_the_group_names_every_command(self) -> None:
        ran = fedhybrid("flower", "--help")
        assert ran.code == 0
        assert all(name in ran.out for name in FLOWER_COMMANDS)

    @pytest.mark.parametrize("name", FLOWER_COMMANDS)
    def test_of_a_command_shows_its_options(self, name: str) -> None:
        ran = fedhybrid("flower", name, "--help")
        assert ran.code == 0
        assert {"simulate": "--ray-address", "serve": "--variant", "join": "--own-data", "keys": "--host"}[
            name
        ] in ran.out

    def test_a_command_that_is_none_is_bad_input(self) -> None:
        assert fedhybrid("flower", "jion").code == 2


class TestKeys:
    def test_are_made_and_named(self, keys: Path) -> None:
        ran = fedhybrid("flower", "keys", keys, "--nodes", "pi-1,pi-2")
        assert ran.code == 0
        assert ran.out.splitlines() == [
            f"server: {keys / 'server.pem'}, for nodes: {keys / 'ca.crt'}",
            f"node pi-1: {keys / 'nodes/pi-1.key'}",
            f"node pi-2: {keys / 'nodes/pi-2.key'}",
        ]

    def test_a_number_makes_so_many(self, tmp_path: Path) -> None:
        assert fedhybrid("flower", "keys", tmp_path, "--nodes", "2").code == 0
        assert sorted(path.name for path in (tmp_path / "nodes").glob("*.key")) == ["node-0.key", "node-1.key"]

    def test_another_host_needs_another_certificate(self, keys: Path) -> None:
        one_line(fedhybrid("flower", "keys", keys, "--host", "10.0.0.1"), "is not for 10.0.0.1")


class TestRefusedBeforeAnythingStarts:
    @pytest.mark.parametrize("command", ["simulate", "serve"])
    def test_out_is_missing(self, command: str, toml: Path) -> None:
        one_line(fedhybrid("flower", command, toml), "--out DIR is missing")

    @pytest.mark.parametrize("command", ["simulate", "serve"])
    def test_no_such_recipe(self, command: str, tmp_path: Path) -> None:
        ran = fedhybrid("flower", command, tmp_path / "none.toml", "--out", tmp_path / "run", *secure(command))
        one_line(ran, "none.toml")

    @pytest.mark.parametrize("command", ["simulate", "serve"])
    def test_a_setting_that_is_none(self, command: str, toml: Path, tmp_path: Path) -> None:
        ran = fedhybrid("flower", command, toml, "rouns=3", "--out", tmp_path / "run", *secure(command))
        one_line(ran, "rouns")

    def test_serve_without_keys(self, toml: Path, tmp_path: Path) -> None:
        one_line(fedhybrid("flower", "serve", toml, "--out", tmp_path / "run"), "--keys DIR is missing")

    def test_serve_with_keys_that_are_not_there(self, toml: Path, tmp_path: Path) -> None:
        ran = fedhybrid("flower", "serve", toml, "--out", tmp_path / "run", "--keys", tmp_path / "none")
        assert_refused(ran, "none/ca.crt", "none/server.pem", "none/server.key")

    def test_serve_with_keys_and_insecure(self, toml: Path, keys: Path, tmp_path: Path) -> None:
        ran = fedhybrid("flower", "serve", toml, "--out", tmp_path / "run", "--keys", keys, "--insecure")
        one_line(ran, "are of no use to an insecure server")

    @pytest.mark.parametrize("nodes", ["0", "1000"])
    def test_serve_for_a_number_of_nodes_that_cannot_be(
        self, nodes: str, toml: Path, keys: Path, tmp_path: Path
    ) -> None:
        ran = fedhybrid("flower", "serve", toml, "--out", tmp_path / "run", "--keys", keys, "--nodes", nodes)
        one_line(ran, f"--nodes must be 1 to data.clients, which is {recipe()['data']['clients']}, got {nodes}")

    def test_serve_with_a_variant_that_is_none(self, toml: Path, keys: Path, tmp_path: Path) -> None:
        ran = fedhybrid("flower", "serve", toml, "--out", tmp_path / "run", "--keys", keys, "--variant", "x")
        one_line(ran, "--variant 'x': the recipe has no such variant")

    def test_serve_without_a_variant_of_several(self, keys: Path, tmp_path: Path) -> None:
        several = tmp_path / "several.toml"
        several.write_text(tomli_w.dumps(recipe(compare={"variants": {"a": {}, "b": {"method": "fedprox"}}})))
        ran = fedhybrid("flower", "serve", several, "--out", tmp_path / "run", "--keys", keys)
        one_line(ran, "give --variant (one of a, b)")

    def test_serve_at_a_port_that_is_taken(self, toml: Path, keys: Path, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            ran = fedhybrid("flower", "serve", toml, "--out", tmp_path / "run", "--keys", keys, "--port", str(port))
        one_line(ran, f"cannot listen at 127.0.0.1:{port}")


class TestJoin:
    def test_needs_a_key(self) -> None:
        one_line(fedhybrid("flower", "join", "127.0.0.1:9092"), "--key FILE is missing")

    def test_ca_and_insecure_contradict_each_other(self, keys: Path) -> None:
        ran = fedhybrid("flower", "join", "127.0.0.1:9092", "--ca", keys / "ca.crt", "--insecure")
        one_line(ran, "leave one of them out")

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:9092"])
    def test_an_address_is_host_and_port(self, address: str) -> None:
        one_line(fedhybrid("flower", "join", address, "--insecure"), "HOST:PORT is needed")

    def test_a_budget_that_is_none(self, tmp_path: Path) -> None:
        one_line(join(tmp_path, "--insecure", "--budget", "much"), "much")

    def test_a_device_that_is_none(self, tmp_path: Path) -> None:
        one_line(join(tmp_path, "--insecure", "--budget", "1MiB", "--device", "toster"), "toster")

    def test_a_hard_limit_needs_a_budget(self, tmp_path: Path) -> None:
        one_line(join(tmp_path, "--insecure", "--hard-limit"), "--hard-limit needs --budget")

    def test_a_key_that_is_not_there(self, keys: Path, tmp_path: Path) -> None:
        ran = join(tmp_path, "--ca", keys / "ca.crt", "--key", tmp_path / "none.key")
        one_line(ran, "none.key")

    def test_a_server_that_does_not_answer(self, keys: Path, tmp_path: Path) -> None:
        ran = join(tmp_path, "--ca", keys / "ca.crt", "--key", keys / "nodes/pi-1.key", "--patience-s", "0.5")
        assert_refused(ran, "nothing answers at 127.0.0.1:")
        assert len(ran.errors) == 1


@pytest.mark.parametrize("command", ["simulate", "serve", "join", "keys"])
def test_without_flower_one_line_says_how_to_get_it(command: str, toml: Path, tmp_path: Path) -> None:
    assert_refused(with_flower(None, command, toml, tmp_path), "pip install 'fedhybrid[flower")


def test_without_ray_one_line_says_how_to_get_it(toml: Path, tmp_path: Path) -> None:
    ran = with_flower("1.41.0", "simulate", toml, tmp_path, hidden="ray")
    assert_refused(ran, "Flower's simulation needs Ray, which is not installed; pip install 'fedhybrid[flower-sim]'")


def test_another_flower_is_refused_by_its_version(toml: Path, tmp_path: Path) -> None:
    ran = with_flower("1.38.0", "serve", toml, tmp_path)
    assert_refused(ran, "flwr >=1.41,<1.43 is needed, found 1.38.0; pip install 'fedhybrid[flower]'")


def secure(command: str) -> list[str]:
    return ["--insecure"] if command == "serve" else []


def join(home: Path, *options: str | Path) -> Ran:
    """To a port of this machine where nobody listens; a device is named so that none is measured."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    device = () if "--device" in options else ("--device", "laptop")
    return fedhybrid(
        "flower", "join", f"127.0.0.1:{port}", "--name", "pi-1", "--home", home / "home", *device, *options
    )


def with_flower(version: str | None, command: str, toml: Path, folder: Path, *, hidden: str = "") -> Ran:
    """The command in an interpreter whose Flower says that it is of this version; None is none. `hidden` is missing."""
    (folder / "sitecustomize.py").write_text(
        f"said, hidden = {version!r}, {hidden or ('flwr' if version is None else '')!r}\n" + HIDE, encoding="utf-8"
    )
    words = {
        "simulate": [toml, "--out", folder / "run"],
        "serve": [toml, "--out", folder / "run", "--insecure"],
        "join": ["127.0.0.1:9", "--insecure", "--patience-s", "0.1"],
        "keys": [folder / "keys"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "fedhybrid", "flower", command, *(str(word) for word in words)],
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Ran(code=done.returncode, out=done.stdout, err=done.stderr)
