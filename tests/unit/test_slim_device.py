"""A slim device does what the full engine does, bit for bit, and holds nothing that a stranger tells it to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.federation_parts import workbench
from tests.split_method import ServerHalf

from fedhybrid.engine.labour import Job, do_job
from fedhybrid.engine.runtime import classification_loss, one_thread
from fedhybrid.engine.traffic import Delivery, Traffic
from fedhybrid.engine.walk import Leg
from fedhybrid.errors import ConfigError, FedHybridError, InfeasibleBudgetError, PlanMismatchError
from fedhybrid.executor import PreparedStep, prepare_step
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config, to_table
from fedhybrid.integrations.flower.device.programs import ProgramFolder, program_name
from fedhybrid.integrations.flower.device.setting import config_of
from fedhybrid.integrations.flower.device.slim import SlimDevice, open_device
from fedhybrid.planner import Plan
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.tree import buffers_of, detached_copy, tensors_of

CLIENT, SEED = 2, 5
RECIPE: dict[str, Any] = {
    "method": "fedprox",
    "policy": "uniform",
    "model": "cnn",
    "dataset": "digits",
    "seed": SEED,
    "model_options": {"width": 0.5, "norm": "batch"},
    "data": {"clients": 8},
    "fleet": {"clients_per_round": 2},
    "train": {"batch_size": 8, "lr": 0.05, "momentum": 0.5},
    "traffic": {"up": [{"name": "delta"}, {"name": "error-feedback"}, {"name": "top-k", "ratio": 0.2}]},
}


def brief(**changes: Any) -> dict[str, Any]:
    """As it travels: complete, as JSON, without the server's own folder."""
    table: dict[str, Any] = json.loads(json.dumps(to_table(load_config(RECIPE)) | changes))
    return table


class Engine:
    """The full engine for the same recipe."""

    def __init__(self) -> None:
        self.job = build_federation(load_config(RECIPE))
        split = self.job.dataset.train
        with one_thread():
            self.prepared: PreparedStep = prepare_step(
                self.job.model,
                classification_loss,
                split.batch(torch.arange(self.job.work.batch_size)),
                self.job.optimizer,
                op_seconds=lambda work: 1e-4,
            )
            self.plans = {
                "tight": self.prepared.smallest(),
                "lossy": self.prepared.packed_whole("affine-8"),
                "keep-all": self.prepared.keep_all(),
            }
        self.bench = workbench(self.job.model, self.prepared, split)
        self.traffic = Traffic(
            down=self.job.down, up=self.job.up, differences=False, buffers=buffers_of(self.job.model), run_seed=SEED
        )
        self.weights = detached_copy(tensors_of(self.job.model))

    def program(self, device: str, plan: str | None, submodel: str = "") -> Plan:
        return self.plans["keep-all" if plan is None else plan]

    def do(self, job: Job) -> Delivery:
        with one_thread():
            return do_job(job, self.job.method, self.bench, self, self.traffic)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devices") / "home"


@pytest.fixture(scope="module")
def device(home: Path, engine: Engine) -> SlimDevice:
    made = open_device(brief(), CLIENT, home)
    made.compile({name: plan.to_json() for name, plan in engine.plans.items()})
    return made


def job_of(engine: Engine, *legs: Leg, state: dict[str, torch.Tensor] | None = None, kind: str = "train") -> Job:
    work = LocalWork(epochs=1, batch_size=8, lr=0.05)
    task = ClientTask(
        client=CLIENT, round_index=1, weights=engine.weights, work=work, seed=77, plan=legs[0].plan, kind=kind
    )
    return Job(
        task=task,
        device="laptop",
        legs=legs,
        shard=engine.job.shards[CLIENT],
        state=state or {},
        at_s=0.0,
        evaluation_batch=16,
    )


def assert_equal(found: Delivery, expected: Delivery) -> None:
    assert found.payload == expected.payload
    for group in ("weights", "masks", "state"):
        mine, theirs = getattr(found.update, group) or {}, getattr(expected.update, group) or {}
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name in ("loss_mean", "squared_loss_sum", "steps", "samples_seen", "num_samples", "measured_peak_bytes"):
        assert getattr(found.update, name) == getattr(expected.update, name), name
    assert dict(found.update.metrics) == dict(expected.update.metrics)


@pytest.mark.parametrize("plans", [(None,), ("tight",), ("lossy",), ("tight", None, "lossy")])
def test_jobs_come_out_as_from_the_full_engine(device: SlimDevice, engine: Engine, plans: tuple[str | None]) -> None:
    job = job_of(engine, *(Leg(plan=plan, steps=2) for plan in plans[:-1]), Leg(plan=plans[-1], steps=20))
    expected = engine.do(job)
    found = device.do(job, {})
    assert expected.payload is not None
    assert_equal(found, expected)
    kept = expected.update.state
    assert kept is not None
    again = job_of(engine, *job.legs, state=kept)
    assert_equal(device.do(again, {}), engine.do(again))


def test_evaluation_comes_out_the_same(device: SlimDevice, engine: Engine) -> None:
    job = job_of(engine, Leg(plan=None, steps=0), kind="evaluate")
    assert_equal(device.do(job, {}), engine.do(job))


def test_each_job_tells_when_its_first_step_began(device: SlimDevice, engine: Engine) -> None:
    for _ in range(2):
        began_s = time.perf_counter()
        device.do(job_of(engine, Leg(plan="tight", steps=3)), {})
        first_s = device.first_step_at_s
        assert first_s is not None
        assert began_s < first_s < time.perf_counter()
    device.do(job_of(engine, Leg(plan=None, steps=0), kind="evaluate"), {})
    assert device.first_step_at_s is None


def test_device_knows_what_registration_asks_for(device: SlimDevice, engine: Engine) -> None:
    assert device.num_samples == len(engine.job.shards[CLIENT])
    assert device.fingerprint == engine.prepared.fingerprint
    assert device.resident_bytes == engine.prepared.resident_bytes
    assert device.eager_peak_bytes == engine.prepared.eager_peak_bytes
    assert device.keep_all_bytes == engine.prepared.keep_all_peak_bytes


@pytest.mark.slow
def test_programs_are_made_once_and_damaged_ones_again(device: SlimDevice, home: Path, engine: Engine) -> None:
    tight = {"tight": engine.plans["tight"].to_json()}
    again = open_device(brief(), CLIENT, home)
    again.compile(tight)
    assert again._compiler.visits == 0, "everything lies in the folder"
    files = sorted((home / "programs").iterdir())
    assert len(files) == 3, "the unplanned program is the plan that decides nothing"
    for file in (*files, home / "programs.secret"):
        assert file.stat().st_mode & 0o777 == 0o600
    file = home / "programs" / program_name(again._compiler._setting, engine.plans["tight"].key)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    mended = open_device(brief(), CLIENT, home)
    mended.compile(tight)
    assert mended._compiler.visits == 1
    job = job_of(engine, Leg(plan="tight", steps=20))
    assert_equal(mended.do(job, {}), engine.do(job))


def test_files_of_another_folder_or_name_are_not_run(device: SlimDevice, home: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted((home / "programs").iterdir())
    other = ProgramFolder(tmp_path / "other")
    (tmp_path / "other" / "programs" / first.name).write_bytes(first.read_bytes())
    assert other.read(first.name) is None
    own = ProgramFolder(home)
    own.write("whole", b"no program at all")
    assert own.read("whole") is None
    (home / "programs" / "whole").write_bytes(second.read_bytes())
    assert own.read("whole") is None
    (home / "programs" / "whole").unlink()


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    ProgramFolder(tmp_path)
    os.chmod(tmp_path / "programs.secret", 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        ProgramFolder(tmp_path)


def test_plans_for_something_else_are_refused(device: SlimDevice, engine: Engine) -> None:
    plan = json.loads(engine.plans["keep-all"].to_json())
    with pytest.raises(PlanMismatchError):
        device.compile({"alien": json.dumps(plan | {"fingerprint": "0" * 16})})
    with pytest.raises(ConfigError, match="a plan must be JSON"):
        device.compile({"alien": "import os"})
    with pytest.raises(InfeasibleBudgetError):
        device.compile({"alien": json.dumps(plan | {"budget_bytes": 1000})})
    impossible = [{"storage": 0, "tensor": "x", "action": "recompute", "nbytes": 4}]
    with pytest.raises(FedHybridError, match="plan alien"):
        device.compile({"alien": json.dumps(plan | {"decisions": impossible})})
    with pytest.raises(ConfigError, match="has not come with it"):
        device.do(job_of(engine, Leg(plan="alien", steps=1)), {})
    assert_equal(
        device.do(job_of(engine, Leg(plan=None, steps=20)), {}), engine.do(job_of(engine, Leg(plan=None, steps=20)))
    )


def test_a_task_with_another_model_is_refused(device: SlimDevice, engine: Engine) -> None:
    job = job_of(engine, Leg(plan=None, steps=20))
    first, *_ = engine.weights
    others = engine.weights | {first: torch.zeros(1), "more": torch.zeros(2)}
    del others[list(others)[1]]
    with pytest.raises(ConfigError) as caught:
        device.do(replace(job, task=replace(job.task, weights=others)), {})
    assert len(caught.value.problems) == 2  # of another shape, and missing; what is more is a method's own
    assert_equal(device.do(job, {}), engine.do(job))


def test_a_task_that_the_server_gave_up_does_not_block_the_device(tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    from fedhybrid.engine.parcels import job_parts  # noqa: PLC0415
    from fedhybrid.integrations.flower.device.node import DeployedNode, NodeFacts  # noqa: PLC0415
    from fedhybrid.integrations.flower.messages import Letter  # noqa: PLC0415

    allowed = ["tests.split_method:TwoLayers", "tests.split_method:SplitTraining"]
    split = brief(
        model=allowed[0], model_options={}, method=allowed[1], method_options={}, traffic={},
        train={"batch_size": 8, "steps": 2, "lr": 0.1},
    )  # fmt: skip
    opened: list[SlimDevice] = []

    def open_here(table: Any, client: int) -> SlimDevice:
        opened.append(open_device(table, client, tmp_path, allow=allowed))
        return opened[-1]

    facts = NodeFacts(name="pi", budget=lambda: "100%", device={}, runtime_bytes=lambda: 1)
    node = DeployedNode(facts=facts, open_device=open_here)
    about = {"brief": json.dumps(split), "client": CLIENT}
    assert node.handle(Letter(kind="join", header=about)).kind == "joined"
    work = LocalWork(epochs=1, batch_size=8, lr=0.1, steps=2)
    task = ClientTask(
        client=CLIENT, round_index=0, weights=detached_copy(opened[0].weights), work=work, seed=1, plan=None
    )
    job = Job(task=task, device="pi", legs=(Leg(plan=None, steps=2),), shard=np.zeros(0, int), state={}, at_s=0.0)
    header, groups = job_parts(job)

    def begin(key: str) -> Letter:
        return node.handle(Letter(kind="job", header={**header, **about, "key": key, "asks": True}, groups=groups))

    assert begin("1-0").kind == "question"
    assert begin("1-1").kind == "question"  # the first was given up by a deadline
    assert node.handle(Letter(kind="join", header=about)).kind == "joined"  # of a server that was started again
    assert len(opened) == 1
    reply = begin("2-0")
    server = ServerHalf(task)
    for _ in range(2):
        assert reply.kind == "question"
        answer = server.answer(reply.groups["question"])
        reply = node.handle(Letter(kind="answer", header=about | {"key": "2-0"}, groups={"answer": answer}))
    assert reply.kind == "delivery"
    assert reply.header["update"]["steps"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "os:system"}, r"model 'os:system' is code that this device would run.*--allow os:system"),
        ({"method": "os:system"}, r"method 'os:system' is code"),
        ({"dataset": "flwr:mnist"}, r"dataset 'flwr:mnist' downloads data"),
        ({"model": "cnnn"}, "Did you mean 'cnn'"),
        ({"model_options": {"widht": 1.0}}, "no such option"),
        ({"train": {"batch_size": 0}}, "the server's recipe: train.batch_size"),
        ({"rounds": "many", "sed": 1}, "unknown key sed"),
        ({"traffic": {"up": [{"name": "top-k", "ratio": 0.1}]}}, "is for what training has changed"),
    ],
)
def test_briefs_are_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(brief(**changes))


def test_the_servers_folder_means_nothing_and_strange_clients_are_refused(tmp_path: Path) -> None:
    table = brief()
    table["data"] |= {"root": "/no/such/folder"}
    with pytest.raises(ConfigError, match="clients 0 to 7"):
        open_device(table, 8, tmp_path)
    with pytest.raises(ConfigError, match="fashion-mnist"):
        open_device(brief(dataset="fashion-mnist"), None, tmp_path, data_root=tmp_path / "none")


def test_code_of_elsewhere_runs_only_where_it_is_allowed() -> None:
    name = "fedhybrid.methods:FedAvg"
    assert config_of(brief(method=name, method_options={}), allow=[name]).method == name


def test_a_workshop_that_fails_says_why(device: SlimDevice, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    changed = engine.prepared.plan("90%").to_json()
    with pytest.raises(ConfigError, match="the process that makes programs of plans failed"):
        device.compile({"new": changed})


def test_a_workshop_ends_with_whoever_started_it(device: SlimDevice, home: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"setting": device._setting, "plans": {"orphan": None}}))
    workshop = subprocess.Popen(
        [sys.executable, "-m", "fedhybrid.integrations.flower.device.workshop", str(home), str(order)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, _ = workshop.communicate(timeout=60)  # which closes its input
    finally:
        workshop.kill()
    assert (workshop.returncode, out) == (1, "")
    assert not (home / "programs" / "orphan").exists()


IDLE = """
import sys
from dataclasses import replace
from pathlib import Path
from fedhybrid.engine.footprint import process_memory
import torch
before = process_memory()["rss_anon_bytes"]
from fedhybrid.integrations.flower.device.slim import open_device
import json
device = open_device(json.loads(sys.argv[1]), 0, Path(sys.argv[2]))
print(process_memory()["rss_anon_bytes"] - before)
"""


@pytest.mark.slow
def test_an_idle_device_costs_little_more_than_torch(tmp_path: Path) -> None:
    added = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", IDLE, json.dumps(brief()), str(tmp_path)],
            capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        added.append(int(done.stdout))
    assert max(added) < 40 * 2**20  # 20 MB measured; capture alone would be 90


def test_all_of_a_data_set_is_one_clients_own(tmp_path: Path, home: Path) -> None:
    whole = open_device(brief(), None, home)
    assert whole.num_samples == len(whole._bench.split)
    assert np.array_equal(whole._shard, np.arange(whole.num_samples))
