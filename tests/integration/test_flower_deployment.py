"""A deployment as people run it: a server and its nodes, each a process of its own, over TLS with keys for all."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.deployment_parts import Deployment, Program, command_line, memory_of
from tests.run_parts import small

import fedhybrid as fh
from fedhybrid.data import load_dataset
from fedhybrid.experiment.check import load_config
from fedhybrid.experiment.material import dealt

pytest.importorskip("flwr")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")

BUDGETS = ("100%", "95%", "90%", "85%")
MIB = 2**20
MARGIN_BYTES = 32 * MIB
NAMES = ("pi-0", "pi-1", "pi-2", "pi-3")
TIERS = [{"name": n, "budget": b, "device": "raspberry-pi-4"} for n, b in zip(NAMES, BUDGETS, strict=True)]


def job(**changes: Any) -> dict[str, Any]:
    """Digits, a narrow network, four clients that all take part in each round."""
    base = small(method="fedhybrid", policy="fedhybrid", rounds=6)
    base["data"] = {"clients": 4, "alpha": 1.0}
    base["fleet"] = {"clients_per_round": 4}
    base["train"] = {"batch_size": 16, "steps": 12, "lr": 0.1, "momentum": 0.5}
    return base | changes


def join_all(lab: Deployment) -> dict[str, Program]:
    return {name: lab.join(name, budget=budget) for name, budget in zip(NAMES, BUDGETS, strict=True)}


def assert_planned(lab: Deployment) -> None:
    """Every task that came back was planned for its node, and took what was planned."""
    for task in lab.tasks():
        if task.outcome == "completed":
            assert task.planned_peak_bytes == task.measured_peak_bytes
            assert task.measured_peak_bytes is not None
            assert task.measured_peak_bytes <= task.budget_bytes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Four nodes have trained, and two strangers were at the door meanwhile; all have ended."""
    with Deployment(tmp_path_factory.mktemp("flower") / "deployment", job()) as lab:
        lab.make_keys(*NAMES)
        lab.make_keys("stranger", folder="other")
        server = lab.serve(nodes=4)
        strangers = [
            lab.join("unknown", key="other/nodes/stranger.key"),
            lab.join("misled", ca="other/ca.crt", key="keys/nodes/pi-0.key"),
        ]
        join_all(lab)
        for stranger in strangers:
            stranger.wait_to_end()
        assert not server.ended
        lab.await_end(server, may_die=strangers)
    return lab


def test_four_nodes_train_to_what_one_process_finds(finished: Deployment, tmp_path: Path) -> None:
    assert_planned(finished)
    tasks = finished.tasks()
    assert {(task.round, task.client) for task in tasks} == {(r, c) for r in range(6) for c in range(4)}
    assert [task.outcome for task in tasks] == ["completed"] * 24
    assert {task.tier for task in tasks} == set(NAMES)
    assert len({task.planned_peak_bytes for task in tasks}) > 1
    assert (finished.run / "report.html").is_file()
    here = fh.run(job(fleet={"clients_per_round": 4, "tiers": TIERS}), out=tmp_path / "here")
    there = fh.load_run(finished.run)
    assert there.summary is not None
    assert here.summary.final_accuracy is not None
    assert here.summary.final_accuracy > 0.6
    assert there.summary.final_accuracy == pytest.approx(here.summary.final_accuracy, abs=0.02)


def test_strangers_are_told_why_they_are_refused(finished: Deployment) -> None:
    programs = {program.name: program for program in finished.programs}
    unknown, misled = programs["unknown"], programs["misled"]
    assert (unknown.process.returncode, misled.process.returncode) == (2, 2)
    assert unknown.said.splitlines()[-1] == (
        f"error: this node's key is not registered at {finished.address}: give other/nodes/stranger.pub to whoever "
        "runs the server, to be put among its nodes"
    )
    assert misled.said.splitlines() == [
        f"error: the certificate of the server at {finished.address} is not signed by the CA in other/ca.crt: take "
        "the ca.crt of this server"
    ]
    assert "Traceback" not in unknown.said


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that does much else
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_to_end_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    with Deployment(tmp_path / "deployment", job()) as lab:
        lab.make_keys("pi-0")
        server, node = lab.serve(nodes=4), lab.join("pi-0")
        node.wait_to_say("joining as client 0")  # by a process of its own that makes its program
        for program in (node, server):
            program.process.send_signal(how)
            program.wait_to_end(15.0)
            assert "Traceback" not in program.said
        lab.wait_until(lambda: not lab.left(), "everything to end", 5.0, may_die=[server, node])
        assert how != signal.SIGINT or "stopped" in node.said


def at_work(lab: Deployment, round_index: int) -> None:
    """Waits until this round has begun and its tasks are under way."""
    lab.wait_until(lambda: len(lab.rounds()) >= round_index, f"round {round_index}")
    time.sleep(0.5)
    assert len(lab.rounds()) == round_index, "rounds are too short for this test"


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that does much else
def test_a_killed_node_costs_its_update_and_comes_back_with_less(tmp_path: Path) -> None:
    recipe = job(rounds=10)
    recipe["data"]["clients"] = recipe["fleet"]["clients_per_round"] = 3
    recipe["train"] |= {"steps": 600, "lr": 0.03}
    with Deployment(tmp_path / "deployment", recipe) as lab:
        names = NAMES[:3]
        lab.make_keys(*names)
        server = lab.serve(nodes=3)
        nodes = {name: lab.join(name) for name in names}
        at_work(lab, 1)
        assert nodes["pi-1"].said.count("did a task") == 1, "it is at its second"
        nodes["pi-1"].kill()
        server.wait_to_say("pi-1 has gone", 90.0)
        again = lab.join("pi-1")
        lab.await_end(server)
        assert server.said.count("pi-1 has joined as client") == 2
        assert_planned(lab)
        tasks, rounds = lab.tasks(), lab.rounds()
        assert "did a task" in again.said
    own = [task for task in tasks if task.tier == "pi-1"]
    assert len({task.client for task in own}) == 1
    assert len(rounds) == 10
    assert [(task.round, task.outcome) for task in own[:2]] == [(0, "completed"), (1, "disconnected")]
    assert rounds[1].completed == 2
    assert all(task.outcome == "completed" for task in tasks if task.tier != "pi-1" or task.round != 1)
    after = own[2:]
    assert after, "it was back in time"
    assert after[0].budget_bytes < own[0].budget_bytes
    assert after[0].measured_peak_bytes is not None
    assert own[0].measured_peak_bytes is not None
    assert after[0].measured_peak_bytes < own[0].measured_peak_bytes


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that does much else
def test_a_killed_server_goes_on_after_its_last_checkpoint(tmp_path: Path) -> None:
    recipe = job(rounds=5, checkpoint_every=1)
    recipe["train"] |= {"steps": 300, "lr": 0.03}
    with Deployment(tmp_path / "deployment", recipe) as lab:
        lab.make_keys(*NAMES)
        server = lab.serve(nodes=4)
        nodes = [lab.join(name, "--client", str(number)) for number, name in enumerate(NAMES)]
        lab.wait_until(lambda: len(lab.rounds()) >= 2, "two rounds")  # between rounds
        kill_with_superlink(lab, server)
        first = lab.serve("--resume", nodes=4, name="server-2")
        stored = int(first.wait_to_say(r"goes on after round (\d)/5")[1])
        assert stored >= 1
        at_work(lab, stored + 1)  # in mid-round
        kill_with_superlink(lab, first)
        second = lab.serve("--resume", nodes=4, name="server-3")
        lab.await_end(second)
        assert f"goes on after round {stored + 1}/5" in second.said
        for node in nodes:
            assert not node.ended
            assert len(re.findall("connected to .* as node", node.said)) >= 3
        assert_planned(lab)
        tasks = lab.tasks()
    assert [(task.round, task.client) for task in sorted(tasks, key=lambda t: (t.round, t.client))] == [
        (r, c) for r in range(5) for c in range(4)
    ]
    assert {task.outcome for task in tasks} == {"completed"}
    tiers = [tier | {"budget": "100%"} for tier in TIERS]
    fh.run(recipe | {"fleet": {"clients_per_round": 4, "tiers": tiers}}, out=tmp_path / "here")
    weights = [load_file(folder / "model.safetensors") for folder in (lab.run, tmp_path / "here")]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=0, atol=1e-6)


def superlinks(lab: Deployment) -> list[int]:
    return [pid for pid in lab.left() if "launch.py" in command_line(pid)]


def kill_with_superlink(lab: Deployment, server: Program) -> None:
    """Kills the server; its superlink ends by itself."""
    assert len(superlinks(lab)) == 1
    server.kill()
    lab.wait_until(lambda: not superlinks(lab), "the superlink to end with its server", 15.0)


def heavy_job(*, enabled: str) -> dict[str, Any]:
    """Batches that take some 200 MB without a plan."""
    recipe = job(model="resnet20", model_options={"width": 0.5}, rounds=2, method="fedhybrid", policy="uniform")
    recipe["data"]["clients"] = recipe["fleet"]["clients_per_round"] = 2 if enabled == "off" else 1
    recipe["train"] |= {"batch_size": 256, "steps": 2}
    recipe["planner"] = {"enabled": enabled}
    return recipe


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that does much else
def test_a_node_under_a_hard_limit_lives_by_its_plan(tmp_path: Path) -> None:
    """What the limit allows is far less than the unplanned step needs: that this one dies of it is tested, too."""
    planned = heavy_job(enabled="on")
    with Deployment(tmp_path / "planned", planned) as lab:
        lab.make_keys("small")
        server = lab.serve(nodes=1)
        node = lab.join("small", "--hard-limit", budget="40%")
        lab.await_end(server)
        assert_planned(lab)
        tasks = lab.tasks()
        said = node.wait_to_say(r"hard limit: (\d+) MiB base \+ ([\d.]+) MiB")
        assert not node.ended
    assert [task.outcome for task in tasks] == ["completed"] * 2
    allowance_bytes = round(float(said[2]) * MIB)
    assert allowance_bytes == pytest.approx(tasks[0].budget_bytes + MARGIN_BYTES, abs=0.1 * MIB)

    with Deployment(tmp_path / "unplanned", heavy_job(enabled="off")) as lab:
        lab.make_keys("small", "strong")
        server = lab.serve(nodes=2)
        # A promise that its system will not keep. It is size that shall kill it, not holes: see `joining._limit_data`.
        small = lab.join("small", budget="100%", env={"MALLOC_MMAP_THRESHOLD_": "65536"})
        small.wait_to_say("ready")
        base_bytes = memory_of(small.process.pid, "VmData")
        limits = (base_bytes + allowance_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1])
        resource.prlimit(small.process.pid, resource.RLIMIT_DATA, limits)
        lab.join("strong", budget="100%")
        lab.await_end(server, may_die=[small])
        unplanned = {tier: [task for task in lab.tasks() if task.tier == tier] for tier in ("small", "strong")}
    assert {task.outcome for task in unplanned["strong"]} == {"completed"}
    assert {task.outcome for task in unplanned["small"]} <= {"out_of_memory", "disconnected"}
    needed_bytes = unplanned["strong"][0].measured_peak_bytes
    assert needed_bytes is not None
    assert needed_bytes > tasks[0].budget_bytes + MARGIN_BYTES + 80 * MIB, "or its death would prove nothing"


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that does much else
def test_own_data_a_chosen_client_and_a_late_node(tmp_path: Path) -> None:
    recipe = job(rounds=500)
    recipe["train"] = {"batch_size": 16, "lr": 0.05}
    with Deployment(tmp_path / "deployment", recipe) as lab:
        lab.make_keys("third", "owner")
        server = lab.serve(nodes=2)
        nodes = {"third": lab.join("third", "--client", "3"), "owner": lab.join("owner", "--own-data")}
        held = {name: int(node.wait_to_say(r"ready: (\d+) samples")[1]) for name, node in nodes.items()}
        server.wait_to_say("third has joined as client 3")
        lab.wait_until(lambda: len(lab.rounds()) >= 1, "a round")
        lab.make_keys("late")
        server.wait_to_say("registered late")
        lab.join("late")

        def came() -> set[str]:
            assert not server.ended, server.tail
            return {task.tier for task in lab.tasks() if task.outcome == "completed"}

        lab.wait_until(lambda: came() == {"third", "owner", "late"}, "the late node")
        tasks = lab.tasks()
    config = load_config(recipe)
    dataset = load_dataset("digits")
    assert held == {"third": len(dealt(config, dataset)[3]), "owner": len(dataset.train)}
    for name, samples in held.items():
        assert {task.samples for task in tasks if task.tier == name} == {-(-samples // 16) * 16}
    assert {task.client for task in tasks if task.tier == "third"} == {3}
    assert {task.outcome for task in tasks} == {"completed"}
    early = [task for task in tasks if task.round == 0]
    assert {task.tier for task in early} == {"third", "owner"}


@contextmanager
def loopback_only() -> Iterator[tuple[str, ...]]:
    """Words that put a command into a network that has nothing but the loopback interface."""
    if any(shutil.which(tool) is None for tool in ("unshare", "nsenter", "ip")):
        pytest.skip("a network of its own needs unshare, nsenter and ip")
    holder = subprocess.Popen(
        ["unshare", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "up\n":
            pytest.skip("this system gives no network of its own")
        yield ("nsenter", "--target", str(holder.pid), "--user", "--net", "--preserve-credentials")


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that does much else
def test_nothing_but_loopback_is_needed_or_tried(tmp_path: Path) -> None:
    with loopback_only() as prefix:
        traces = tmp_path / "traces"
        traces.mkdir()
        watched = shutil.which("strace") is not None
        # As a grandchild, so that what is started is the program itself.
        trace = ("strace", "-D", "-ff", "-qq", "--seccomp-bpf", "-e", "trace=connect", "-o", f"{traces}/of")
        with Deployment(tmp_path / "deployment", job(rounds=2), prefix=prefix + trace * watched) as lab:
            lab.make_keys(*NAMES)
            server = lab.serve(nodes=4)
            join_all(lab)
            lab.await_end(server)
            tasks = lab.tasks()
    assert [task.outcome for task in tasks] == ["completed"] * 8
    if watched:
        lines = [line for file in traces.iterdir() for line in file.read_text(errors="replace").splitlines()]
        tried = [line for line in lines if "AF_INET" in line]
        assert any(f"htons({lab.port})" in line for line in tried), "the trace has seen the nodes connect"
        assert [line for line in tried if '"127.0.0.1"' not in line and '"::1"' not in line] == []
