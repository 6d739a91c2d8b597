"""Small parts of a device's program: what it keeps, what it promises, tasks that wait for the server's answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from fedhybrid.engine.labour import Job
from fedhybrid.engine.traffic import Delivery
from fedhybrid.errors import ConfigError, InfeasibleBudgetError
from fedhybrid.records import ClientTask, LocalWork, Update

pytest.importorskip("flwr")

from flwr.app import Message

from fedhybrid.engine.parcels import job_parts
from fedhybrid.integrations.flower.device import tasks as tasks_module
from fedhybrid.integrations.flower.device.flags import flag_problems
from fedhybrid.integrations.flower.device.free_memory import MeasuredBudget, available_bytes
from fedhybrid.integrations.flower.device.joining import _Answering
from fedhybrid.integrations.flower.device.kept import KeptInMemory, KeptOnDisk
from fedhybrid.integrations.flower.device.node import DeployedNode, Kept, NodeFacts
from fedhybrid.integrations.flower.device.tasks import Tasks
from fedhybrid.integrations.flower.messages import QUERY, Letter, record_of
from fedhybrid.integrations.flower.private import be_task


@pytest.fixture(params=["disk", "memory"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    return KeptOnDisk(tmp_path / "kept") if request.param == "disk" else KeptInMemory()


@pytest.fixture
def num_more_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many threads there are more than before the test, where a thread lives on a little after it said its last."""

    class Dawdling(SimpleQueue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            super().put(item, block, timeout)
            time.sleep(0.01)

    monkeypatch.setattr(tasks_module, "SimpleQueue", Dawdling)
    before = set(threading.enumerate())
    return lambda: len(set(threading.enumerate()) - before)


def test_what_counts_is_what_the_server_says(kept: Kept) -> None:
    assert kept.begin("", "") == {}
    for ticket in range(4):
        kept.keep(f"5-{ticket}", {"x": torch.tensor([float(ticket)])})
    found = kept.begin("5-1", "5-0")
    assert found is not None
    assert found["x"].item() == 1.0
    again = kept.begin("5-0", "5-0")  # the server was killed and went back to its checkpoint
    assert again is not None
    assert again["x"].item() == 0.0
    assert [kept.begin(key, key) for key in ("5-1", "5-2", "5-3")] == [None] * 3  # those are gone


def test_what_was_lost_is_not_what_was_empty(kept: Kept) -> None:
    kept.keep("5-0", {})
    assert kept.begin("5-0", "") == {}
    assert kept.begin("5-1", "5-0") is None
    assert kept.begin("5-0", "") == {}


def test_what_is_kept_outlives_the_program(tmp_path: Path) -> None:
    for ticket in range(3):
        KeptOnDisk(tmp_path).keep(f"5-{ticket}", {"x": torch.ones(ticket)})
    assert len((KeptOnDisk(tmp_path).begin("5-2", "5-1") or {})["x"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5-1.safetensors", "5-2.safetensors"]
    (tmp_path / "5-2.safetensors").write_bytes(b"half")
    assert KeptOnDisk(tmp_path).begin("5-2", "5-1") is None


class Counting:
    """A device that keeps how many tasks it has done."""

    num_samples = 3
    first_step_at_s = None

    def do(self, job: Job, plans: Mapping[str, str], ask: Any) -> Delivery:
        if ask is not None:
            ask({})
        done = job.state.get("done", torch.zeros(1)) + 1
        update = Update(
            client=job.task.client, round_index=0, weights={}, num_samples=3, samples_seen=1, steps=1,
            loss_mean=float(done), squared_loss_sum=0.0, measured_peak_bytes=0, state={"done": done},
        )  # fmt: skip
        return Delivery(update=update)


def _node(kept: Kept | None = None, **options: Any) -> DeployedNode:
    facts = NodeFacts(name="pi", budget=lambda: "100%", device={}, runtime_bytes=lambda: 1)
    node = DeployedNode(facts=facts, open_device=lambda *_: Counting(), kept=kept or KeptInMemory(), **options)
    assert node.handle(Letter(kind="join", header={"brief": "{}", "client": 1})).kind == "joined"
    return node


def _job_letter(ticket: str, kind: str = "train", **header: Any) -> Letter:
    job = _job(1)
    told, groups = job_parts(replace(job, task=replace(job.task, kind=kind), evaluation_batch=4))
    return Letter(kind="job", header={**told, "key": ticket, "brief": "{}", **header}, groups=groups)


def test_a_node_says_when_what_it_kept_is_lost(kept: Kept) -> None:
    node = _node(kept)

    def done(key: str, accepted: str, stored: str = "") -> tuple[float, bool]:
        reply = node.handle(_job_letter(key, accepted=accepted, stored=stored))
        assert reply.kind == "delivery"
        return reply.header["update"]["loss_mean"], reply.header.get("state_lost", False)

    assert done("1-0", "") == (1.0, False)
    assert done("1-1", "1-0") == (2.0, False)
    assert done("1-2", "1-1", "1-0") == (3.0, False)
    assert done("2-3", "1-0", "1-0") == (2.0, False)  # the server was killed and went back
    assert done("2-4", "1-2", "1-0") == (1.0, True)


@pytest.mark.parametrize("bad", ["../evil", "1-2/3", "1-2\n", "-", "1" * 300 + "-1", 7, None, ["1-2"]])
@pytest.mark.parametrize("name", ["key", "accepted", "stored"])
def test_a_key_is_no_path(name: str, bad: Any, tmp_path: Path) -> None:
    node = _node(KeptOnDisk(tmp_path / "kept"))
    reply = node.handle(_job_letter("1-0", **{name: bad}))
    assert reply.kind == "refused"
    assert f"{name} must be the key of a task" in reply.header["why"]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_new_job_or_a_new_server_ends_what_waits_for_the_old(num_more_threads: Callable[[], int]) -> None:
    at_work: list[int] = []

    @contextmanager
    def training() -> Iterator[None]:
        at_work.append(1)
        yield
        at_work.pop()

    node = _node(training=training)
    for key in ("1-0", "1-1"):
        assert node.handle(_job_letter(key, asks=True)).kind == "question"
        assert (len(at_work), num_more_threads()) == (1, 1)
    assert node.handle(Letter(kind="hello")).kind == "here"
    strange = node.handle(Letter(kind="answer", header={"key": "1-0", "brief": "{}"}))
    assert "no task 1-0 waits" in strange.header["why"]
    assert at_work == [1]  # the other goes on
    assert node.handle(Letter(kind="answer", header={"key": "1-1", "brief": "{}"})).kind == "delivery"
    assert (at_work, num_more_threads()) == ([], 0)
    assert node.handle(_job_letter("1-2", asks=True)).kind == "question"
    assert node.handle(Letter(kind="join", header={"brief": "{}", "client": 1})).kind == "joined"
    assert (at_work, num_more_threads()) == ([], 0)
    assert node.handle(_job_letter("2-0")).kind == "delivery"
    assert at_work == []


def test_a_method_that_does_not_want_to_end_is_ended() -> None:
    class Stubborn:
        def do(self, job: Job, plans: Mapping[str, str], ask: Any) -> Delivery:
            try:
                ask({})
            except Exception:
                return Counting().do(job, plans, ask)
            raise AssertionError

    tasks = Tasks()
    assert _begin(tasks, Stubborn(), 1).kind == "question"
    tasks.give_up()
    assert not tasks.wait


def test_a_task_that_fails_ends_its_thread(num_more_threads: Callable[[], int]) -> None:
    class Forgetful:
        def do(self, job: Job, plans: Mapping[str, str], ask: Any) -> Delivery:
            ask({})
            raise ConfigError("what was the question?")

    tasks = Tasks()
    assert _begin(tasks, Forgetful(), 1).kind == "question"
    assert num_more_threads() == 1
    answer = Letter(kind="answer", header={"key": "1"}, groups={"answer": {}})
    assert "what was the question?" in tasks.handle(answer, Forgetful()).header["why"]
    assert num_more_threads() == 0


def test_a_device_without_samples_tests_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _node().handle(_job_letter("1-0", "evaluate")).kind == "delivery"
    monkeypatch.setattr(Counting, "num_samples", 0)
    reply = _node().handle(_job_letter("1-0", "evaluate"))
    assert "holds no samples to test the model on" in reply.header["why"]
    assert _node().handle(_job_letter("1-0")).kind == "delivery"


def test_what_the_server_refuses_is_said_once_and_in_plain_text() -> None:
    be_task(run_id=1, task_id=1, node_id=1)
    news: list[str] = []
    answering = _Answering(_node(), news.append)

    def refuse(why: str) -> Letter:
        return answering.to(Message(record_of(Letter(kind="refused", header={"why": why})), 1, QUERY))

    for _ in range(2):
        assert refuse("your \x1b[31mname\r\nis \u202etaken").kind == "heard"
    refuse("x" * 1000)
    assert news == [
        "the server refused this node: your [31mname is taken", "the server refused this node: " + "x" * 300
    ]  # fmt: skip


def test_all_flags_that_make_no_sense_are_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fine: dict[str, Any] = {
        "name": "pi-1.a_B", "home": tmp_path / "new", "budget": "40%", "device": "laptop", "client": 0,
        "data_root": tmp_path, "hard_limit": True, "patience_s": 0.0, "key_file": tmp_path / "file",
    }  # fmt: skip
    assert flag_problems(**fine) == []
    for name in ("", "../x", "a b", "-x", "a" * 65, "a\n"):
        assert len(flag_problems(**fine | {"name": name})) == 1
    bad = {
        "name": "a/b", "home": tmp_path / "file", "ca_file": tmp_path / "no.crt", "key_file": tmp_path / "no.key",
        "budget": "much", "device": "toster", "client": -1, "data_root": tmp_path / "none", "patience_s": float("nan"),
    }  # fmt: skip
    found = flag_problems(**fine | bad)
    flags = ["name", "home", "ca", "key", "data", "budget", "device", "client", "patience-s"]
    assert [line.split()[0].rstrip(":") for line in found] == [f"--{flag}" for flag in flags]
    assert "--hard-limit needs --budget" in flag_problems(name="a", home=tmp_path, hard_limit=True)[0]


def test_a_promise_follows_what_is_free() -> None:
    free = [1000]
    budget = MeasuredBudget(lambda: free[0], every_s=3600.0)
    assert budget() == 500  # half, until enough was seen
    for _ in range(12 * 6):
        budget.observe()
    learnt = budget()
    assert 800 < learnt <= 1000
    free[0] = 300
    budget.observe()
    assert budget() <= 300
    with budget.training():
        free[0] = 10
        budget.observe()  # a task's own memory is not that of others
        assert budget() > 10  # what is promised can be asked while a task waits for an answer
    assert budget() > 10
    budget.observe()
    assert budget() <= 10
    free[0] = 0
    budget.observe()
    assert budget() == 1


def test_this_machine_says_what_is_free() -> None:
    if not Path("/proc/meminfo").is_file():
        pytest.skip("only Linux says so")
    with MeasuredBudget(every_s=0.001).watching():
        pass
    assert 2**20 < available_bytes() < 2**50


def _job(client: int) -> Job:
    task = ClientTask(
        round_index=0, client=client, weights={"w": torch.zeros(2)}, work=LocalWork(epochs=1, batch_size=1, lr=0.1),
        plan=None, seed=1,
    )  # fmt: skip
    return Job(task=task, device="pi", legs=(), shard=torch.zeros(0, dtype=torch.int64).numpy(), state={}, at_s=0.0)


class Asking:
    """A device whose task asks twice, and draws random numbers in between."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def do(self, job: Job, plans: Mapping[str, str], ask: Any) -> Delivery:
        self.threads.add(torch.get_num_threads())
        torch.manual_seed(job.task.client)
        first = torch.rand(3)
        got = ask({"first": first})["doubled"]
        second = torch.rand(3)
        ask({"second": second})
        return Delivery(
            update=Update(
                client=job.task.client, round_index=0, weights={"w": got, "r": second}, num_samples=1, samples_seen=1,
                steps=1, loss_mean=0.0, squared_loss_sum=0.0, measured_peak_bytes=0,
            )
        )  # fmt: skip


def _begin(tasks: Tasks, device: Any, client: int) -> Letter:
    header, groups = job_parts(_job(client))
    return tasks.handle(Letter(kind="job", header=header | {"key": str(client), "asks": True}, groups=groups), device)


def test_tasks_that_wait_do_not_disturb_each_other() -> None:
    device, tasks = Asking(), Tasks()
    before = torch.get_rng_state()
    questions = {client: _begin(tasks, device, client) for client in (1, 2)}
    for client, letter in questions.items():
        assert letter.kind == "question"
        answer = {"doubled": 2 * letter.groups["question"]["first"]}
        header = {"key": str(client)}
        assert tasks.handle(Letter(kind="answer", header=header, groups={"answer": answer}), device).kind == "question"
    for client in (2, 1):
        done = tasks.handle(Letter(kind="answer", header={"key": str(client)}, groups={"answer": {}}), device)
        assert done.kind == "delivery"
        torch.manual_seed(client)
        assert torch.equal(done.groups["weights"]["w"], 2 * torch.rand(3))
        assert torch.equal(done.groups["weights"]["r"], torch.rand(3))
    assert device.threads == {1}
    torch.set_rng_state(before)


def test_a_task_that_is_given_up_ends_its_thread(num_more_threads: Callable[[], int]) -> None:
    tasks = Tasks()
    assert _begin(tasks, Asking(), 1).kind == "question"
    assert tasks.handle(Letter(kind="given-up", header={"key": "1"}), Asking()).kind == "given-up"
    assert num_more_threads() == 0
    late = tasks.handle(Letter(kind="answer", header={"key": "1"}, groups={"answer": {}}), Asking())
    assert late.kind == "refused"
    assert "no task 1 waits" in late.header["why"]


def test_refusals_say_why() -> None:
    class TooSmall:
        def do(self, job: Job, plans: Mapping[str, str], ask: Any) -> Delivery:
            raise InfeasibleBudgetError(needed_bytes=10, budget_bytes=5, blocker="conv")

    header, groups = job_parts(_job(1))
    reply = Tasks().handle(Letter(kind="job", header=header | {"key": "1"}, groups=groups), TooSmall())
    assert (reply.kind, reply.header["outcome"]) == ("refused", "out_of_memory")
    reply = Tasks().handle(Letter(kind="job", header={"key": "1"}), TooSmall())
    assert (reply.kind, reply.header["outcome"]) == ("refused", "crash")
    reply = Tasks().handle(Letter(kind="song"), TooSmall())
    assert "none that a device answers" in reply.header["why"]
