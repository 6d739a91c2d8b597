"""Anybody's Flower app with FedHybrid's strategy: own plans for own budgets, measured peaks, failures, old apps."""

import pytest

pytest.importorskip("flwr")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.data import load_digits
from fedhybrid.devices import load_profile
from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower import FedHybridStrategy, LocalGrid, answer_query, planned_step, step_metrics
from fedhybrid.selection import PlannedUtility

BATCH = 16
BUDGETS: dict[int, str | int] = {
    10: "8 MiB",
    20: "80%",
    30: "60%",
    40: 500_000,
    50: "25 KiB",  # less than the model itself
    60: "45%",
}
PARTITIONS = {
    node: {"partition-id": place, "budget": str(budget)} for place, (node, budget) in enumerate(BUDGETS.items())
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, 8):
            layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(x), 4).flatten(1))


@pytest.fixture(scope="module")
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    data = load_digits()
    both = []
    for split in (data.train, data.test):
        x, y = split.batch(torch.arange(len(split)))
        both.append((F.avg_pool2d(x, 2), y))
    return both[0], both[1]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batches_of(data: tuple[Tensor, Tensor], partition: int, rows: int = 32) -> list[tuple[Tensor, Tensor]]:
    chosen = torch.arange(partition, len(data[0]), len(BUDGETS))[:rows]
    return [(data[0][part], data[1][part]) for part in chosen.split(BATCH) if len(part) == BATCH]


def sgd(lr: float = 0.1) -> fh.SGD:
    return fh.SGD(lr=lr, momentum=0.9)


def app_for(
    data, *, rows: int = 32, answers: bool = True, device: str | None = "raspberry-pi-4", seen: list | None = None
) -> ClientApp:
    app = ClientApp()

    if answers:

        @app.query("fedhybrid")
        def capabilities(message: Message, context: Context) -> Message:
            examples = BATCH * len(batches_of(data, context.node_config["partition-id"], rows))
            return answer_query(message, context, device=device, num_examples=examples)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        batches = batches_of(data, context.node_config["partition-id"], rows)
        net = Net()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        step = planned_step(message, net, F.cross_entropy, batches[0], sgd())
        losses = [float(step(x, y)) for x, y in batches]
        if seen is not None:
            seen.append((context.node_id, step))
        metrics = MetricRecord({"num-examples": BATCH * len(batches), "train_loss": sum(losses) / len(losses)})
        content = {"arrays": ArrayRecord(net.state_dict()), "metrics": metrics, "fedhybrid": step_metrics(step)}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        net = Net().eval()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = batches_of(data, context.node_config["partition-id"], rows)[0]
        with torch.no_grad():
            right = float((net(x).argmax(1) == y).float().mean())
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": len(y), "right": right})}), reply_to=message
        )

    return app


def strategy_for(data, **options) -> FedHybridStrategy:
    torch.manual_seed(7)
    return FedHybridStrategy(Net(), F.cross_entropy, batches_of(data, 0)[0], sgd(), **options)


def first_arrays() -> ArrayRecord:
    torch.manual_seed(1)
    return ArrayRecord(Net().state_dict())


def accuracy(arrays: ArrayRecord, test: tuple[Tensor, Tensor]) -> float:
    net = Net().eval()
    net.load_state_dict(arrays.to_torch_state_dict())
    with torch.no_grad():
        return float((net(test[0]).argmax(1) == test[1]).float().mean())


class TestPlans:
    def test_each_node_trains_inside_its_own_budget(self, digits):
        train, test = digits
        strategy = strategy_for(train, fraction_train=1.0, min_available_nodes=6)
        result = strategy.start(
            LocalGrid(app_for(train, rows=96), PARTITIONS), first_arrays(), num_rounds=8, timeout=60
        )

        assert len(strategy.history) == 8
        assert strategy.history[0]["cohort"] == [10, 20, 30, 40, 60]
        for told in strategy.history:
            assert told["failures"] == {}
            assert told["measured_peak_bytes"].keys() == set(told["cohort"])
            for node, measured_bytes in told["measured_peak_bytes"].items():
                assert measured_bytes <= told["budget_bytes"][node]
                assert measured_bytes == told["planned_peak_bytes"][node]
            assert "the smallest plan needs" in told["left_out"][50]
            assert "the budget is 25.00 KiB" in told["left_out"][50]
        plans = strategy.history[0]["plans"]
        assert len(set(plans.values())) == 5
        assert plans[10] == "raspberry-pi-4-keep-all"
        assert accuracy(result.arrays, test) > accuracy(first_arrays(), test) + 0.4
        assert accuracy(result.arrays, test) > 0.6
        assert result.evaluate_metrics_clientapp[8]["right"] > result.evaluate_metrics_clientapp[1]["right"]

    def test_plans_change_bytes_and_not_the_result(self, digits):
        """A round by plain FedAvg, whose clients run the unplanned step, gives the same weights but for rounding."""
        train, _ = digits
        nodes = {node: config for node, config in PARTITIONS.items() if node != 50}
        strategy = strategy_for(train)
        ours = strategy.start(LocalGrid(app_for(train), nodes), first_arrays(), num_rounds=1, timeout=60)
        plain = FedAvg().start(LocalGrid(app_for(train), nodes), first_arrays(), num_rounds=1, timeout=60)
        assert len(set(strategy.history[0]["planned_peak_bytes"].values())) == 5
        for name, array in ours.arrays.items():
            expected = torch.from_numpy(plain.arrays[name].numpy())
            torch.testing.assert_close(torch.from_numpy(array.numpy()), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        "policy", ["planned-utility", PlannedUtility(speed_penalty=0.0, speed_penalty_least=0.0)], ids=["name", "own"]
    )
    def test_a_policy_sees_losses_and_chooses_a_share(self, digits, policy):
        train, _ = digits
        strategy = strategy_for(train, fraction_train=0.5, policy=policy, fraction_evaluate=0.0)
        strategy.start(LocalGrid(app_for(train), PARTITIONS), first_arrays(), num_rounds=4, timeout=60)
        assert [len(told["cohort"]) for told in strategy.history] == [3, 3, 3, 3]
        heard = {node for told in strategy.history for node in told["cohort"]}
        assert heard <= {10, 20, 30, 40, 60}
        if policy != "planned-utility":  # which spends its first rounds on the fast ones
            assert len(heard) > 3

    def test_devices_of_ones_own_are_priced_by_their_rates(self, digits, tmp_path):
        train, _ = digits
        own = tmp_path / "board.toml"
        profile = load_profile("raspberry-pi-5")
        rates = "\n".join(
            f"[kinds.{kind}]\nflops_per_s = {rate.flops_per_s}\nbytes_per_s = {rate.bytes_per_s}"
            for kind, rate in profile.kinds.items()
        )
        own.write_text(
            'name = "board"\ntitle = "A board"\nsources = ["here"]\nmemory_bytes = 1000000000\nop_overhead_s = 1e-6\n'
            f"uplink_bytes_per_s = 1e6\ndownlink_bytes_per_s = 1e6\n{rates}\n"
        )
        strategy = strategy_for(train, fraction_evaluate=0.0)
        grid = LocalGrid(app_for(train, device=str(own)), PARTITIONS)
        strategy.start(grid, first_arrays(), num_rounds=1, timeout=60)
        names = list(strategy.history[0]["plans"].values())
        assert all(name.startswith("measured-") for name in names)


class TestFailures:
    def test_a_silent_node_gets_a_smaller_plan(self, digits):
        train, _ = digits
        lost: list[int] = []

        def silent(message: Message) -> bool:
            goes = message.metadata.dst_node_id == 20 and message.metadata.message_type == "train" and len(lost) < 2
            lost.extend([1] * goes)
            return goes

        strategy = strategy_for(train, fraction_evaluate=0.0)
        strategy.start(LocalGrid(app_for(train), PARTITIONS, silent=silent), first_arrays(), num_rounds=3, timeout=30)
        first, second, third = strategy.history
        assert first["failures"] == second["failures"] == {20: "no reply"}
        assert third["failures"] == {}
        peaks = [told["planned_peak_bytes"][20] for told in strategy.history]
        assert peaks[1] <= 0.75 * peaks[0]
        assert peaks[2] < peaks[1]
        assert third["measured_peak_bytes"][20] == peaks[2]
        assert [told["planned_peak_bytes"][30] for told in strategy.history] == [first["planned_peak_bytes"][30]] * 3

    def test_an_app_that_fails_within_its_smallest_plan_is_left_out_and_tried_again(self, digits):
        train, _ = digits
        inner = app_for(train)

        def failing(message: Message, context: Context) -> Message:
            if context.node_id == 40 and message.metadata.message_type == "train":
                raise MemoryError("out of memory")
            return inner(message, context)

        strategy = strategy_for(train, fraction_evaluate=0.0)
        strategy.start(LocalGrid(failing, PARTITIONS), first_arrays(), num_rounds=9, timeout=30)
        tried = [40 in told["cohort"] for told in strategy.history]
        assert tried[0]
        assert "MemoryError" in strategy.history[0]["failures"][40]
        out = tried.index(False)
        assert tried[: out + 6] == [True] * out + [False] * 5 + [True]
        assert "the smallest plan needs" in strategy.history[out]["left_out"][40]

    def test_a_node_that_goes_and_one_that_comes(self, digits):
        train, _ = digits
        grid = LocalGrid(app_for(train), PARTITIONS)
        strategy = strategy_for(train, fraction_evaluate=0.0)
        strategy.start(grid, first_arrays(), num_rounds=1, timeout=30)
        grid.remove_node(10)
        grid.add_node(70, PARTITIONS[10])
        strategy.start(grid, first_arrays(), num_rounds=1, timeout=30)
        assert strategy.history[1]["cohort"] == [20, 30, 40, 60, 70]
        grid.add_node(10, PARTITIONS[40])  # back, with another budget
        strategy.start(grid, first_arrays(), num_rounds=1, timeout=30)
        assert strategy.history[2]["cohort"] == [10, 20, 30, 40, 60, 70]
        assert strategy.history[2]["plans"][10] == strategy.history[2]["plans"][40]
        assert strategy.history[2]["plans"][10] != strategy.history[0]["plans"][10]

    def test_a_node_that_does_not_answer_is_asked_again_later(self, digits):
        train, _ = digits
        asked: list[float] = []

        def silent(message: Message) -> bool:
            goes = message.metadata.dst_node_id == 20 and message.metadata.message_type == "query.fedhybrid"
            if goes:
                asked.append(grid.now())
            return goes and len(asked) == 1

        grid = LocalGrid(app_for(train), PARTITIONS, silent=silent)
        strategy = strategy_for(train, fraction_evaluate=0.0, query_timeout_s=10)
        strategy.start(grid, first_arrays(), num_rounds=6, timeout=30)
        assert [20 in told["cohort"] for told in strategy.history] == [False] * 5 + [True]
        assert strategy.history[0]["left_out"][20] == "it has not answered what it can do"
        assert asked == [0.0, 15.0]


class TestOldApps:
    def test_nodes_that_do_not_know_the_question_train_without_a_plan_until_they_fail(self, digits):
        train, _ = digits
        new, old = app_for(train), app_for(train, answers=False)
        fails: list[int] = []

        def mixed(message: Message, context: Context) -> Message:
            if context.node_id == 60 and fails:
                raise MemoryError("out of memory")
            return (old if context.node_id in (50, 60) else new)(message, context)

        grid = LocalGrid(mixed, PARTITIONS)
        strategy = strategy_for(train, fraction_evaluate=0.0)
        strategy.start(grid, first_arrays(), num_rounds=1, timeout=30)
        fails.append(1)
        strategy.start(grid, first_arrays(), num_rounds=2, timeout=30)
        first, second, third = strategy.history
        assert first["cohort"] == [10, 20, 30, 40, 50, 60]
        assert first["plans"][50] is first["plans"][60] is None
        assert "No query function registered" in first["without_plan"][60]
        assert "MemoryError" in second["failures"][60]
        assert 60 not in third["cohort"]
        assert "its app takes no plans" in third["left_out"][60]
        assert 50 in third["cohort"]

    def test_the_client_lines_do_no_harm_under_another_strategy(self, digits):
        train, test = digits
        result = FedAvg().start(LocalGrid(app_for(train), PARTITIONS), first_arrays(), num_rounds=3, timeout=30)
        assert accuracy(result.arrays, test) > accuracy(first_arrays(), test)


class TestPlannedStep:
    def message(self, strategy: FedHybridStrategy, node: int, data) -> Message:
        grid = LocalGrid(app_for(data), PARTITIONS)
        return next(
            m
            for m in strategy.configure_train(1, first_arrays(), ConfigRecord(), grid)
            if m.metadata.dst_node_id == node
        )

    def test_a_model_built_anew_needs_no_new_capture(self, digits):
        train, _ = digits
        seen: list = []
        strategy = strategy_for(train, fraction_evaluate=0.0)
        grid = LocalGrid(app_for(train, seen=seen), PARTITIONS)
        strategy.start(grid, first_arrays(), num_rounds=2, timeout=30)
        assert len(seen) == 10
        assert len({id(step.prepared.model) for _, step in seen}) == 10
        assert len({id(step.prepared.graph) for _, step in seen}) == 1

    def test_the_same_model_keeps_its_step_and_gets_a_fresh_optimizer(self, digits):
        train, _ = digits
        strategy = strategy_for(train)
        net, (x, y) = Net(), batches_of(train, 0)[0]
        small, large = self.message(strategy, 40, train), self.message(strategy, 10, train)
        step = planned_step(small, net, F.cross_entropy, (x, y), sgd())
        assert step.plan.budget_bytes is not None
        assert step.plan.peak_bytes <= 500_000
        step(x, y)
        assert step.steps_done == 1
        again = planned_step(large, net, F.cross_entropy, (x, y), sgd(lr=0.02))
        assert again is step
        assert (again.steps_done, again.lr) == (0, 0.02)
        assert all(not state.any() for state in again.optimizer_state["head.weight"].values())
        assert again.plan.peak_bytes > 500_000

    def test_another_architecture_is_captured_anew_and_the_plan_refused(self, digits):
        train, _ = digits
        strategy = strategy_for(train)
        message, batch = self.message(strategy, 40, train), batches_of(train, 0)[0]
        planned_step(message, Net(), F.cross_entropy, batch, sgd())
        other = Net()
        other.features[0] = nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular")
        with pytest.raises(fh.PlanMismatchError):
            planned_step(message, other, F.cross_entropy, batch, sgd())

    def test_without_a_plan_the_step_is_eagers(self, digits):
        train, _ = digits
        x, y = batches_of(train, 0)[0]
        torch.manual_seed(3)
        ours, eager = Net(), Net()
        eager.load_state_dict(ours.state_dict())
        plain = Message(RecordDict({"arrays": first_arrays()}), 10, "train")
        step = planned_step(plain, ours, F.cross_entropy, (x, y), sgd())
        optimizer = torch.optim.SGD(eager.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            loss = step(x, y)
            optimizer.zero_grad()
            expected = F.cross_entropy(eager(x), y)
            expected.backward()
            optimizer.step()
            assert torch.equal(loss, expected.detach())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), eager.parameters(), strict=True))


class TestMessages:
    def test_what_a_node_cannot_mean(self):
        message = Message(RecordDict(), 10, "query.fedhybrid")
        context = Context(1, 10, {}, RecordDict(), {})
        with pytest.raises(ConfigError, match=r"budget: needs bytes.*--node-config"):
            answer_query(message, context)
        with pytest.raises(ConfigError) as caught:
            answer_query(message, context, budget="lots", device="toaster", num_examples=-1)
        assert [problem.split(":")[0] for problem in caught.value.problems] == ["budget", "device", "num_examples"]

    def test_the_nodes_own_settings_are_the_default(self):
        message = Message(RecordDict(), 10, "query.fedhybrid")
        context = Context(1, 10, {"budget": "3 MiB", "device": "laptop"}, RecordDict(), {})
        told = answer_query(message, context).content["fedhybrid"]
        assert (told["budget"], told["device"]) == ("3 MiB", "laptop")

    def test_an_unknown_policy_is_named(self, digits):
        with pytest.raises(ConfigError, match="Did you mean 'fedhybrid'"):
            strategy_for(digits[0], policy="fedhybird")
