"""What every method must obey, whatever it does; the oracle is plain PyTorch on one machine."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from tests.federation_parts import SHARDS, prepared_step, small_model, workbench

from fedhybrid.engine.runtime import LocalClient, Workbench, one_thread
from fedhybrid.executor import SGD
from fedhybrid.methods import METHODS
from fedhybrid.planner import Plan
from fedhybrid.protocols import Method, RoundPlan
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, detached_copy, tensors_of

WORK = LocalWork(epochs=2, batch_size=8, lr=0.05)
COHORT = (0, 1, 2)
PULL = {"fedprox": 0.01}  # strength of the proximal term in the oracle's loss


@dataclasses.dataclass(frozen=True)
class Setting:
    """One method with one model to train in."""

    method: Method
    bench: Workbench
    program: Plan
    weights: Tensors

    def tasks(self) -> list[ClientTask]:
        plan = RoundPlan(round_index=4, cohort=COHORT, plans={0: "a", 1: None, 2: "b"}, work=WORK, run_seed=11)
        return self.method.assign(self.method.init(self.weights), plan)

    def train(self, task: ClientTask) -> Update:
        with one_thread():
            return self.bench.run(self.method, task, SHARDS[task.client], self.program)


@pytest.fixture(scope="module", params=sorted(METHODS))
def setting(request: pytest.FixtureRequest) -> Setting:
    method = METHODS[request.param]()
    model = small_model()
    with one_thread():
        prepared = prepared_step(model, method.optimizer(SGD(lr=0.05, momentum=0.5)))
        bench = workbench(model, prepared)
    return Setting(method=method, bench=bench, program=prepared.keep_all(), weights=detached_copy(tensors_of(model)))


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def central_training(method_name: str, weights: Tensors, task: ClientTask, bench: Workbench) -> Tensors:
    """The same batches, trained on with torch.optim and autograd alone."""
    model = small_model()
    own = tensors_of(model)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=WORK.lr, momentum=0.5)
    client = LocalClient(bench=bench, shard=SHARDS[task.client])
    for x, y in client.batches(WORK, task.seed):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        for name, p in model.named_parameters():
            loss = loss + PULL.get(method_name, 0.0) / 2 * (p - start[name]).square().sum()
        loss.backward()
        optimizer.step()
    return detached_copy(own)


class TestEveryMethod:
    def test_opens_with_its_paper(self, setting: Setting) -> None:
        module = inspect.getmodule(type(setting.method))
        assert module is not None
        assert module.__doc__ is not None
        assert all(word in module.__doc__ for word in ("Source:", "Follows", "Differs:", "https://"))

    def test_holds_no_state(self, setting: Setting) -> None:
        assert dataclasses.is_dataclass(setting.method)
        assert hash(setting.method) == hash(type(setting.method)())

    def test_gives_each_client_one_task_with_its_plan_and_seed(self, setting: Setting) -> None:
        tasks = setting.tasks()
        assert [task.client for task in tasks] == list(COHORT)
        assert [task.plan for task in tasks] == ["a", None, "b"]
        assert len({task.seed for task in tasks}) == len(tasks)
        assert tasks[0].seed == derive_seed(11, purpose="train", round_index=4, client=0)
        assert all(task.round_index == 4 and task.work == WORK for task in tasks)

    def test_same_task_gives_the_same_update(self, setting: Setting) -> None:
        first, second = setting.tasks()[:2]
        once = setting.train(first)
        setting.train(second)  # another client in between must leave nothing behind
        torch.rand(3)
        again = setting.train(first)
        assert same(once.weights, again.weights)
        assert dataclasses.replace(once, weights={}) == dataclasses.replace(again, weights={})

    def test_leaves_the_global_model_and_the_generator_alone(self, setting: Setting) -> None:
        task = setting.tasks()[0]
        before, generator = detached_copy(task.weights), torch.get_rng_state()
        update = setting.train(task)
        assert same(task.weights, before)
        assert torch.equal(torch.get_rng_state(), generator)
        assert not same(update.weights, before)

    def test_reports_what_it_did(self, setting: Setting) -> None:
        update = setting.train(setting.tasks()[1])
        assert (update.client, update.round_index) == (1, 4)
        assert (update.num_samples, update.steps, update.samples_seen) == (19, 6, 48)
        assert 0 < update.loss_mean < 10
        assert update.squared_loss_sum >= update.samples_seen * update.loss_mean**2 * (1 - 1e-9)
        assert update.measured_peak_bytes > 0

    def test_one_client_is_central_training(self, setting: Setting) -> None:
        task = setting.tasks()[0]
        update = setting.train(task)
        server = setting.method.aggregate(setting.method.init(setting.weights), [update])
        name = next(n for n, cls in METHODS.items() if isinstance(setting.method, cls))
        with one_thread():
            central = central_training(name, setting.weights, task, setting.bench)
        for key, tensor in central.items():
            torch.testing.assert_close(server.weights[key], tensor, rtol=1e-4, atol=1e-5)

    def test_mean_of_equal_updates_is_that_update(self, setting: Setting) -> None:
        update = setting.train(setting.tasks()[0])
        twins = [dataclasses.replace(update, client=c, num_samples=n) for c, n in ((0, 3), (1, 7), (2, 1))]
        server = setting.method.aggregate(setting.method.init(setting.weights), twins)
        assert same(server.weights, update.weights)

    def test_mean_weighs_by_samples_buffers_included(self, setting: Setting) -> None:
        base = setting.train(setting.tasks()[0])
        ones = {"p": torch.tensor([1.0]), "running_mean": torch.tensor([4.0]), "count": torch.tensor(2)}
        twos = {"p": torch.tensor([5.0]), "running_mean": torch.tensor([0.0]), "count": torch.tensor(6)}
        updates = [
            dataclasses.replace(base, client=0, weights=ones, num_samples=30, samples_seen=1),
            dataclasses.replace(base, client=1, weights=twos, num_samples=10, samples_seen=99),
        ]
        weights = setting.method.aggregate(setting.method.init(ones), updates).weights
        assert weights["p"].item() == 2.0
        assert weights["running_mean"].item() == 3.0
        assert weights["count"].item() == 3
        assert weights["count"].dtype == torch.int64


def test_fedprox_pulls_towards_the_start() -> None:
    """A stronger pull ends nearer to where training began."""
    distances = []
    for mu in (0.0, 1.0, 5.0):
        method = METHODS["fedprox"](mu=mu)  # type: ignore[call-arg]
        model = small_model()
        start = detached_copy(tensors_of(model))
        with one_thread():
            prepared = prepared_step(model, method.optimizer(SGD(lr=0.05)))
            setting = Setting(
                method=method, bench=workbench(model, prepared), program=prepared.keep_all(), weights=start
            )
            update = setting.train(setting.tasks()[0])
        distances.append(sum(float((update.weights[n] - start[n]).square().sum()) for n in start))
    assert distances[0] > distances[1] > distances[2] > 0
