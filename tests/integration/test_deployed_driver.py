"""A deployment's server over the in-memory grid: registration, rounds in time, nodes that fail, restarts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from tests.federation_parts import recipe
from tests.run_parts import last_state, small

import fedhybrid as fh
from fedhybrid.report import load_runs
from fedhybrid.report.tables.summary import summary_table

pytest.importorskip("flwr")

from flwr.app import Context, Message, RecordDict

from fedhybrid.engine import Quiet
from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.deployed.app import server_app
from fedhybrid.integrations.flower.deployed.open_tasks import Patience
from fedhybrid.integrations.flower.deployed.world import deployed
from fedhybrid.integrations.flower.device import node as node_module
from fedhybrid.integrations.flower.messages import letter_of
from fedhybrid.integrations.flower.simulated import app as client_module
from fedhybrid.integrations.flower.simulated.app import client_app
from fedhybrid.integrations.flower.simulated.local_grid import LocalGrid
from fedhybrid.integrations.flower.versions import library_versions

CLIENTS = 4
BUDGETS = ("100%", "95%", "90%", "85%")


@pytest.fixture(autouse=True)
def _nobody_is_known() -> None:
    client_module._nodes.clear()


def _recipe(**changes: Any) -> dict[str, Any]:
    base = small(method="fedhybrid", rounds=3, fleet={"clients_per_round": CLIENTS})
    return base | {"data": {**base["data"], "clients": CLIENTS}} | changes


class Lab:
    """Four nodes on an in-memory grid, and its clock."""

    def __init__(self, silent: Callable[[Message], bool] = lambda message: False, budgets: tuple[str, ...] = BUDGETS):
        self.news: list[str] = []
        self.grid = LocalGrid(
            client_app,
            {100 + n: self.facts(n, budget) for n, budget in enumerate(budgets)},
            duration_s=lambda message, reply: 1.0 + message.metadata.dst_node_id % 10 / 10,
            silent=silent,
        )

    @staticmethod
    def facts(number: int, budget: str) -> dict[str, Any]:
        return {"partition-id": number, "budget": budget, "device": "raspberry-pi-4", "name": f"pi-{number}"}

    def wait(self, seconds: float) -> None:
        self.grid.advance_to(self.grid.now() + max(seconds, 1e-3))

    def run(
        self, table: dict[str, Any], out: Path, nodes: int = CLIENTS, ping_s: float = float("inf"), **options: Any
    ) -> Any:
        there = deployed(
            self.grid,
            nodes=nodes,
            within_s=30.0,
            patience=Patience(task_s=20.0, ping_s=ping_s),
            clock=self.grid.now,
            wait=self.wait,
            on_news=self.news.append,
        )
        return fh.run(table, out=out, assemble=there, **options)


class Interrupting(Quiet):
    """Ends the run after some rounds, as a key press would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_round(self, label: str, record: Any) -> None:
        if record.round + 1 == self.after:
            raise KeyboardInterrupt


def _kind(message: Message) -> str:
    return letter_of(message.content).kind


def test_every_node_trains_by_its_own_plan_to_what_this_process_finds(tmp_path: Path) -> None:
    lab = Lab()
    result = lab.run(_recipe(), tmp_path / "run")
    assert [r.cohort for r in result.rounds] == [[0, 1, 2, 3]] * 3
    tiers = [{"name": f"pi-{n}", "budget": b, "device": "raspberry-pi-4"} for n, b in enumerate(BUDGETS)]
    here = fh.run(_recipe(fleet={"clients_per_round": CLIENTS, "tiers": tiers}), out=tmp_path / "here")
    assert result.summary.final_accuracy == here.summary.final_accuracy
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "here")]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=0, atol=1e-6)
    for task in result.clients:
        assert task.outcome == "completed"
        assert task.tier == f"pi-{task.client}"
        assert task.planned_peak_bytes == task.measured_peak_bytes <= task.budget_bytes
        assert task.virtual_time_s >= 1.0
        assert (task.runtime_bytes or 0) > 2**26
    assert len({task.planned_peak_bytes for task in result.clients}) > 1
    assert any("pi-2 has joined as client 2" in news for news in lab.news)
    rows = [row[0] for row in summary_table(load_runs(tmp_path / "run")).rows]
    assert "Real time in all" in rows
    assert "Program on a device, between tasks" in rows
    rows = [row[0] for row in summary_table(load_runs(tmp_path / "here")).rows]
    assert "Virtual time in all" in rows
    assert "Program on a device, between tasks" not in rows


def test_asynchronous_methods_take_the_same_path(tmp_path: Path) -> None:
    schedule = {"kind": "asynchronous", "in_flight": 3, "buffer": 2}
    table = _recipe(method="fedbuff", rounds=4, schedule=schedule, policy="uniform")
    table["planner"] = {**table["planner"], "enabled": "on"}
    result = Lab().run(table, tmp_path / "run")
    assert len(result.rounds) == 4
    assert all(r.completed == 2 for r in result.rounds)
    assert any(task.staleness for task in result.clients)


def test_split_learning_talks_by_messages(tmp_path: Path) -> None:
    table = recipe(
        model="tests.split_method:TwoLayers",
        model_options={},
        method="tests.split_method:SplitTraining",
        policy="uniform",
        data={"clients": CLIENTS, "alpha": 1.0},
        fleet={"clients_per_round": CLIENTS},
        train={"batch_size": 8, "steps": 3, "lr": 0.1},
    )
    lab = Lab(budgets=("100%",) * CLIENTS)
    result = lab.run(table, tmp_path / "run")
    here = fh.run(table, out=tmp_path / "here")
    assert [c.outcome for c in result.clients] == ["completed"] * len(result.clients)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "here")]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=0, atol=1e-6)
    up = {c.client: c.bytes_up for c in here.clients}
    assert all(c.bytes_up == up[c.client] for c in result.clients)


def test_a_silent_node_loses_its_task_and_gets_a_smaller_plan(tmp_path: Path) -> None:
    lost: list[int] = []

    def silent(message: Message) -> bool:
        if message.metadata.dst_node_id == 100 and _kind(message) == "job" and not lost:
            lost.append(1)
            return True
        return False

    # The node answers whether it is still there, but not its task: its program was started anew.
    result = Lab(silent).run(_recipe(rounds=4), tmp_path / "run", ping_s=5.0)
    own = [task for task in result.clients if task.client == 0]
    assert own[0].outcome == "disconnected"
    assert "started anew" in own[0].detail
    assert own[0].planned_peak_bytes is None
    after = own[1:]
    assert len(after) == 3
    assert [task.outcome for task in after] == ["completed"] * 3
    assert all(task.budget_bytes < own[0].budget_bytes for task in after)
    assert all(task.planned_peak_bytes < 0.99 * result.summary.eager_peak_bytes for task in after)
    assert all(task.outcome == "completed" for task in result.clients if task.client == 1)


def test_a_node_that_hangs_is_left_alone(tmp_path: Path) -> None:
    result = Lab(lambda message: message.metadata.dst_node_id == 100 and _kind(message) == "job").run(
        _recipe(rounds=3), tmp_path / "run"
    )
    own = [task for task in result.clients if task.client == 0]
    assert [task.outcome for task in own] == ["time_out"]
    assert [r.completed for r in result.rounds] == [3, 3, 3]


def test_a_cancelled_node_is_asked_again(tmp_path: Path) -> None:
    lost: list[int] = []

    def silent(message: Message) -> bool:
        if message.metadata.dst_node_id == 100 and _kind(message) == "job" and not lost:
            lost.append(1)
            return True
        return False

    result = Lab(silent).run(_recipe(rounds=8, schedule={"deadline_s": 3.0}), tmp_path / "run", ping_s=5.0)
    own = [task for task in result.clients if task.client == 0]
    assert own[0].outcome == "late"
    assert "completed" in [task.outcome for task in own[1:]]


def test_an_asynchronous_server_that_was_killed_gives_its_tasks_out_again(tmp_path: Path) -> None:
    schedule = {"kind": "asynchronous", "in_flight": 3, "buffer": 2}
    table = _recipe(method="fedbuff", rounds=5, schedule=schedule, policy="uniform", checkpoint_every=1)
    table["planner"] = {**table["planner"], "enabled": "on"}
    with pytest.raises(KeyboardInterrupt):
        Lab().run(table, tmp_path / "run", progress=Interrupting(2))
    assert last_state(tmp_path / "run").pending
    client_module._nodes.clear()
    result = Lab().run(table, tmp_path / "run", resume=True)
    assert [r.completed for r in result.rounds] == [2] * 5


def test_who_cannot_hold_a_step_does_not_use_up_the_patience(tmp_path: Path) -> None:
    schedule = {"kind": "asynchronous", "in_flight": 4}
    table = _recipe(method="fedasync", rounds=4, schedule=schedule, policy="uniform")
    table["planner"] = {**table["planner"], "enabled": "on"}
    lab = Lab(budgets=("100%", "5%", "100%", "100%"))
    result = lab.run(table, tmp_path / "run")
    assert [r.completed for r in result.rounds] == [1] * 4
    assert [news for news in lab.news if "cannot take part" in news] == [
        news for news in lab.news if news.startswith("pi-1 cannot take part: promises")
    ]


def test_another_profile_means_other_plans(tmp_path: Path) -> None:
    table = _recipe(rounds=1)
    Lab().run(table, tmp_path / "run")
    client_module._nodes.clear()
    lab = Lab()
    lab.grid.remove_node(100)
    lab.grid.add_node(100, lab.facts(0, "100%") | {"device": "raspberry-pi-zero-2"})
    lab.run(table | {"rounds": 2}, tmp_path / "run", resume=True)
    names = {path.name for path in (tmp_path / "run/plans").glob("pi-0-*")}
    profiles = {name.split("-")[2] for name in names}
    seconds = {
        profile: {
            json.loads((tmp_path / "run/plans" / name).read_text())["step_time_s"] for name in names if profile in name
        }
        for profile in profiles
    }
    first, second = seconds.values()
    assert first
    assert second
    assert not first & second


def test_a_failing_app_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()
    normal = lab.grid._app

    def app(message: Message, context: Any) -> Message:
        if message.metadata.dst_node_id == 103 and _kind(message) == "job":
            raise ValueError("the disk is full")
        return normal(message, context)

    monkeypatch.setattr(lab.grid, "_app", app)
    result = lab.run(_recipe(), tmp_path / "run")
    own = [task for task in result.clients if task.client == 3]
    assert {task.outcome for task in own} <= {"crash", "out_of_memory"}
    assert own[0].outcome == "crash"
    assert "the disk is full" in own[0].detail
    assert result.rounds[0].completed == 3


def test_nodes_come_and_go(tmp_path: Path) -> None:
    lab = Lab(budgets=("100%", "95%", "90%"))
    steps = {20.0: lambda: lab.grid.add_node(110, lab.facts(3, "85%")), 26.0: lambda: lab.grid.remove_node(101)}
    plain = lab.wait

    def wait(seconds: float) -> None:
        plain(seconds)
        for at_s in [at_s for at_s in steps if at_s <= lab.grid.now()]:
            steps.pop(at_s)()

    lab.wait = wait  # type: ignore[method-assign]
    result = lab.run(_recipe(rounds=30), tmp_path / "run", nodes=3)
    cohorts = [r.cohort for r in result.rounds]
    assert cohorts[0] == [0, 1, 2]
    assert [0, 1, 2, 3] in cohorts
    assert cohorts[-1] == [0, 2, 3]
    assert "pi-1 has gone" in lab.news


def test_a_restarted_server_goes_on_with_the_same_clients(tmp_path: Path) -> None:
    whole = Lab().run(_recipe(rounds=4), tmp_path / "whole")
    lab = Lab()
    lab.run(_recipe(rounds=2), tmp_path / "run")
    client_module._nodes.clear()
    again = Lab().run(_recipe(rounds=4), tmp_path / "run", resume=True)
    assert len(again.rounds) == 4
    assert [r.cohort for r in again.rounds] == [r.cohort for r in whole.rounds]
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_what_nodes_say_is_checked(tmp_path: Path) -> None:
    lab = Lab(budgets=("100%", "a lot", "90%"))
    with pytest.raises(ConfigError, match=r"4 nodes were to join within 30 s, there is pi-0, pi-2; refused: .*a lot"):
        lab.run(_recipe(), tmp_path / "run")


@pytest.mark.parametrize(
    "table",
    [{"failures": {"crash": 0.1}}, {"fleet": {"clients_per_round": 2, "delays": {"erasure": 0.1}}}],
    ids=["failures", "delays"],
)
def test_simulated_trouble_is_not_for_real_devices(table: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"take these tables out"):
        Lab().run(_recipe(**table), tmp_path / "run")


def test_classes_task_by_task_are_not_for_real_devices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[stream\] needs clients whose classes the server knows"):
        Lab().run(_recipe(rounds=2, stream={"tasks": 2, "rounds_each": 1}), tmp_path / "run")


def test_what_a_client_keeps_stays_on_it(tmp_path: Path) -> None:
    up = [{"name": "delta"}, {"name": "error-feedback"}, {"name": "top-k", "ratio": 0.1}]
    table = _recipe(traffic={"up": up}, rounds=3)
    result = Lab(budgets=("100%",) * CLIENTS).run(table, tmp_path / "run")  # splits would change the last bits
    fh.run(table, out=tmp_path / "here")
    assert [c.outcome for c in result.clients] == ["completed"] * 12
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "here")]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=0, atol=1e-6)
    for state in (tmp_path / "run" / "states").iterdir():
        assert list(load_file(state)) == ["key"]  # the server knows what counted, and nothing of what was kept


def test_a_node_with_another_torch_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = library_versions()
    there = {"said": versions | {"torch": "2.9.1"}}
    monkeypatch.setattr(node_module, "library_versions", lambda: there["said"])
    with pytest.raises(ConfigError, match=r"'pi-0' has torch 2.9.1, the server 2\.\d+.*install the same versions"):
        Lab().run(_recipe(), tmp_path / "run")
    there["said"] = versions
    client_module._nodes.clear()
    assert len(Lab().run(_recipe(), tmp_path / "run", resume=True).rounds) == 3


def test_the_server_app_runs_what_its_configuration_says(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(_recipe(rounds=2)))
    grid = LocalGrid(client_app, {100 + n: Lab.facts(n, "100%") for n in range(CLIENTS)}, duration_s=lambda *_: 0.0)
    settings = {"recipe": str(tmp_path / "recipe.toml"), "out": str(tmp_path / "run"), "nodes": CLIENTS}
    server_app(grid, Context(1, 0, {}, RecordDict(), settings))
    result = fh.load_run(tmp_path / "run")
    assert [r.cohort for r in result.rounds] == [[0, 1, 2, 3]] * 2
    assert result.summary is not None
    assert result.summary.clock == "real"
    with pytest.raises(ConfigError, match=r"(?s)out is missing.*no setting 'rounds'") as raised:
        server_app(grid, Context(1, 0, {}, RecordDict(), {"recipe": "x.toml", "rounds": 3, "nodes": 0}))
    assert len(raised.value.problems) == 3


def test_a_server_that_chooses_nobody_says_why(tmp_path: Path) -> None:
    lab = Lab(budgets=("30%",) * CLIENTS)  # the smallest plan needs 82 %
    table = _recipe(rounds=1)
    table["policy"] = "fedhybrid"
    result = lab.run(table, tmp_path / "run")
    assert result.rounds[0].cohort == []
    said = [news for news in lab.news if "no node was chosen of 4: a step needs" in news]
    assert 1 < len(said) < 30  # a thousand looks of a second each, and a word a minute
