"""What every method must obey, whatever it does; the oracle is plain PyTorch on one machine."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, cast

import pytest
import torch
from tests.federation_parts import SHARDS, Shop, shop, small_model
from tests.scene_parts import same_tensors, update_of

from fedhybrid.engine.labour import Job, do_job
from fedhybrid.engine.runtime import LocalClient, Stretch, one_thread
from fedhybrid.engine.traffic import Traffic
from fedhybrid.engine.walk import Leg
from fedhybrid.executor import SGD
from fedhybrid.methods import METHODS
from fedhybrid.methods.averaging import AbstractFederated
from fedhybrid.protocols import Costs, Method, RoundPlan, ServerState
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, detached_copy, tensors_of
from fedhybrid.updates import Pipeline, average_present

WORK = LocalWork(epochs=2, batch_size=8, lr=0.05)
COHORT = (0, 1, 2)
VERSION = 4
PULL = {"fedprox": 0.01, "tea-fed": 0.01, "teasq-fed": 0.01}  # strength of the proximal term in the oracle's loss
# With which options a method lets one fresh update replace the global model, as a mean of one update does.
REPLACING: dict[str, dict[str, Any]] = {name: {"mixing": 1.0} for name in ("fedasync", "tea-fed", "teasq-fed")}

NOBODY = cast(Costs, None)  # methods of one submodel ask for no costs


def trains_the_whole(method: Method) -> bool:
    """Whether its clients train the recipe's model as it is; the others are in `test_method_runs.py` alone."""
    verbs = (type(method).adapt, type(method).menu, type(method).submodel)
    return verbs == (AbstractFederated.adapt, AbstractFederated.menu, AbstractFederated.submodel)


WHOLE = sorted(name for name, method in METHODS.items() if trains_the_whole(method()))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One method, and the shop where its clients train."""

    name: str
    method: Method
    shop: Shop

    @property
    def weights(self) -> Tensors:
        return self.shop.weights

    @property
    def replacing(self) -> Method:
        """The method with the options under which one fresh update replaces the global model."""
        return METHODS[self.name](**REPLACING.get(self.name, {}))

    def server(self, weights: Tensors | None = None) -> ServerState:
        return dataclasses.replace(self.method.init(weights or self.weights), version=VERSION)

    def tasks(self, draw: int = VERSION) -> list[ClientTask]:
        plan = RoundPlan(
            round_index=VERSION,
            cohort=COHORT,
            plans={0: "a", 1: None, 2: "b"},
            work=WORK,
            run_seed=11,
            draw=draw,
            costs=NOBODY,
        )
        return self.method.assign(self.server(), plan)

    def train(self, task: ClientTask, state: Tensors | None = None) -> Update:
        stretches = [Stretch(program=self.shop.prepared.keep_all(), steps=6)]
        with one_thread():
            return self.shop.bench.run(self.method, task, SHARDS[task.client], stretches, state or {})

    def sent(self, weights: Tensors, start: Tensors) -> Tensors:
        """A model as the method's clients send it that have received `start`."""
        return {n: t - start[n] for n, t in weights.items()} if self.method.differences else weights


@pytest.fixture(scope="module", params=WHOLE)
def setting(request: pytest.FixtureRequest) -> Setting:
    method = METHODS[request.param]()
    return Setting(name=request.param, method=method, shop=shop(method.optimizer(SGD(lr=0.05, momentum=0.5))))


def central_training(method_name: str, weights: Tensors, task: ClientTask, made: Shop) -> Tensors:
    """The same batches, trained on with torch.optim and autograd alone."""
    model = small_model()
    own = tensors_of(model)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=WORK.lr, momentum=0.5)
    stretches = [Stretch(program=made.prepared.keep_all(), steps=1)]
    client = LocalClient(
        station=made.bench.station(""), split=made.bench.split, shard=SHARDS[task.client], stretches=stretches
    )
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
        assert tasks[0].seed == derive_seed(11, purpose="train", round_index=VERSION, client=0)
        assert all(task.round_index == VERSION and task.work == WORK for task in tasks)
        assert all(task.kind == "train" and same_tensors(task.weights, setting.weights) for task in tasks)

    def test_a_client_that_is_asked_twice_of_one_version_draws_anew(self, setting: Setting) -> None:
        assert {task.seed for task in setting.tasks()}.isdisjoint(task.seed for task in setting.tasks(draw=99))

    def test_preparations_are_tasks_of_their_own_kind(self, setting: Setting) -> None:
        for phase in setting.method.preparations:
            plan = RoundPlan(
                round_index=0, cohort=(1,), plans={1: None}, work=WORK, run_seed=11, draw=0, phase=phase, costs=NOBODY
            )
            assert [task.kind for task in setting.method.assign(setting.server(), plan)] == [phase]

    def test_its_facts_have_their_types(self, setting: Setting) -> None:
        method = setting.method
        assert all(isinstance(fact, bool) for fact in (method.plans, method.asynchronous, method.differences))
        assert method.codec is None or isinstance(method.codec, str)
        assert isinstance(method.preparations, tuple)
        assert all(
            isinstance(phase, str) and phase not in ("train", "evaluate", "query") for phase in method.preparations
        )

    def test_the_server_begins_with_a_copy_of_the_weights(self, setting: Setting) -> None:
        weights = detached_copy(setting.weights)
        server = setting.method.init(weights)
        weights["head.bias"].add_(1.0)
        assert same_tensors(server.weights, setting.weights)
        assert server.version == 0

    def test_same_task_gives_the_same_update(self, setting: Setting) -> None:
        first, second = setting.tasks()[:2]
        once = setting.train(first)
        setting.train(second)  # another client in between must leave nothing behind
        torch.rand(3)
        again = setting.train(first)
        assert same_tensors(once.weights, again.weights)
        assert dataclasses.replace(once, weights={}) == dataclasses.replace(again, weights={})

    def test_leaves_the_global_model_and_the_generator_alone(self, setting: Setting) -> None:
        task = setting.tasks()[0]
        before, generator = detached_copy(task.weights), torch.get_rng_state()
        update = setting.train(task)
        assert same_tensors(task.weights, before)
        assert torch.equal(torch.get_rng_state(), generator)
        assert not same_tensors(update.weights, before)

    def test_reports_what_it_did(self, setting: Setting) -> None:
        update = setting.train(setting.tasks()[1])
        assert (update.client, update.round_index) == (1, VERSION)
        assert (update.num_samples, update.steps, update.samples_seen) == (19, 6, 48)
        assert 0 < update.loss_mean < 10
        assert update.squared_loss_sum >= update.samples_seen * update.loss_mean**2 * (1 - 1e-9)
        assert update.measured_peak_bytes > 0

    def test_one_client_is_central_training(self, setting: Setting) -> None:
        task = setting.tasks()[0]
        update = setting.train(task)
        server = setting.replacing.aggregate(setting.server(), [update])
        with one_thread():
            central = central_training(setting.name, setting.weights, task, setting.shop)
        for key, tensor in central.items():
            torch.testing.assert_close(server.weights[key], tensor, rtol=1e-4, atol=1e-5)

    def test_equal_updates_are_one_update(self, setting: Setting) -> None:
        update = setting.train(setting.tasks()[0])
        twins = [dataclasses.replace(update, client=c, num_samples=n) for c, n in ((0, 3), (1, 7), (2, 1))]
        one = setting.replacing.aggregate(setting.server(), [update])
        server = setting.replacing.aggregate(setting.server(), twins)
        for name, tensor in one.weights.items():
            torch.testing.assert_close(server.weights[name], tensor, rtol=1e-6, atol=1e-7)

    def test_tensors_that_nobody_sent_stay_as_they_were(self, setting: Setting) -> None:
        update = setting.train(setting.tasks()[0])
        part = dataclasses.replace(update, weights={"head.bias": update.weights["head.bias"]})
        server = setting.method.aggregate(setting.server(), [part])
        assert server.weights.keys() == setting.weights.keys()
        for name, tensor in setting.weights.items():
            assert torch.equal(server.weights[name], tensor) is (name != "head.bias")

    def test_elements_that_nobody_sent_stay_as_they_were(self, setting: Setting) -> None:
        update = setting.train(setting.tasks()[0])
        mask = torch.rand(update.weights["head.weight"].shape, generator=torch.Generator().manual_seed(0)) < 0.5
        masked = dataclasses.replace(update, masks={"head.weight": mask})
        server = setting.method.aggregate(setting.server(), [masked])
        before, after = setting.weights["head.weight"], server.weights["head.weight"]
        assert torch.equal(after[~mask], before[~mask])
        assert not torch.equal(after[mask], before[mask])
        whole = setting.method.aggregate(setting.server(), [update])
        assert torch.equal(after[mask], whole.weights["head.weight"][mask])

    def test_aggregating_changes_nothing_that_it_was_given(self, setting: Setting) -> None:
        server, update = setting.server(), setting.train(setting.tasks()[0])
        before, sent = detached_copy(server.weights), detached_copy(update.weights)
        extra = {"mine": torch.tensor(2.0)}
        after = setting.method.aggregate(dataclasses.replace(server, extra=extra), [update, update])
        assert same_tensors(server.weights, before)
        assert same_tensors(update.weights, sent)
        assert same_tensors({"mine": after.extra["mine"]}, extra)  # whatever a method adds of its own
        assert all(tensor.dtype == before[name].dtype for name, tensor in after.weights.items())

    def test_what_a_client_keeps_goes_in_and_comes_out(self, setting: Setting) -> None:
        """A method without state leaves what the links keep alone, and trains no differently because of it."""
        task = dataclasses.replace(setting.tasks()[0], plan=None)
        kept = {"updates/error/head.bias": torch.ones(10)}
        traffic = Traffic(down=Pipeline(), up=Pipeline(), differences=setting.method.differences, run_seed=1)
        job = Job(task=task, device="laptop", legs=(Leg(plan=None, steps=10),), shard=SHARDS[0], state=kept, at_s=0.0)
        with one_thread():
            update = do_job(job, setting.method, setting.shop.bench, setting.shop.plain, traffic).update
        assert update.state is None
        assert same_tensors(update.weights, setting.train(task).weights)


ONES: Tensors = {"p": torch.tensor([1.0]), "running_mean": torch.tensor([4.0]), "count": torch.tensor(2)}
TWOS: Tensors = {"p": torch.tensor([5.0]), "running_mean": torch.tensor([0.0]), "count": torch.tensor(6)}
ROUNDS = [name for name in WHOLE if not METHODS[name]().asynchronous]  # others take only tensors that they know


@pytest.mark.parametrize("name", ROUNDS)
class TestRounds:
    def test_mean_weighs_by_samples_buffers_included(self, name: str) -> None:
        updates = [
            update_of(ONES, round_index=10, num_samples=30, samples_seen=1),
            update_of(TWOS, client=1, round_index=10, num_samples=10, samples_seen=99),
        ]
        weights = METHODS[name]().aggregate(ServerState(weights=ONES, version=10), updates).weights
        assert weights["p"].item() == 2.0
        assert weights["running_mean"].item() == 3.0
        assert weights["count"].item() == 3
        assert weights["count"].dtype == torch.int64

    def test_each_element_is_averaged_over_those_who_sent_it(self, name: str) -> None:
        before: Tensors = {"w": torch.zeros(4), "b": torch.full((2,), 9.0)}
        values = ({"w": torch.full((4,), 1.0), "b": torch.zeros(2)}, {"w": torch.full((4,), 5.0)})
        masks: list[Tensors] = [{"w": torch.tensor([True, True, False, False])}, {"w": torch.tensor([True, False] * 2)}]
        updates = [
            update_of(tensors, mask, client=client, round_index=10, num_samples=samples)
            for client, (tensors, mask, samples) in enumerate(zip(values, masks, (30, 10), strict=True))
        ]
        weights = METHODS[name]().aggregate(ServerState(weights=before, version=10), updates).weights
        assert weights["w"].tolist() == [2.0, 1.0, 5.0, 0.0]
        assert weights["b"].tolist() == [0.0, 0.0]
        expected = average_present(before, list(values), [30, 10], masks)
        assert same_tensors(weights, expected)


def test_fedprox_pulls_towards_the_start() -> None:
    """A stronger pull ends nearer to where training began."""
    distances = []
    for mu in (0.0, 1.0, 5.0):
        method = METHODS["fedprox"](mu=mu)  # type: ignore[call-arg]
        setting = Setting(name="fedprox", method=method, shop=shop(method.optimizer(SGD(lr=0.05))))
        update = setting.train(setting.tasks()[0])
        start = setting.weights
        distances.append(sum(float((update.weights[n] - start[n]).square().sum()) for n in start))
    assert distances[0] > distances[1] > distances[2] > 0
