"""Flower's grid in one process: virtual time, contexts that are kept, failures, Flower's own strategies over it."""

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedhybrid.errors import ConfigError
from fedhybrid.integrations.flower.private import SUPERLINK_NODE_ID, ErrorCode
from fedhybrid.integrations.flower.simulated.local_grid import LocalGrid

NODES = {11: {"partition-id": 0}, 22: {"partition-id": 1}, 33: {"partition-id": 2}}
SECONDS = {11: 3.0, 22: 1.0, 33: 2.0}


def ask(node: int, **config: object) -> Message:
    return Message(RecordDict({"config": ConfigRecord(config)}), node, "train")


def counting_app() -> ClientApp:
    """Counts its messages in its context; moves the model by one more than its partition's number."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen = context.state.setdefault("seen", MetricRecord({"messages": 0}))
        seen["messages"] += 1
        config = message.content["config"]
        if config.get("fails"):
            raise OSError("no space left")
        config["touched"] = True
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "messages": seen["messages"]})})
        if "arrays" in message.content:
            by = 1.0 + int(context.node_config["partition-id"])
            moved = message.content["arrays"]["w"].numpy() + by
            content["arrays"] = ArrayRecord({"w": Array(moved)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        level = float(message.content["arrays"]["w"].numpy().mean())
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 2, "level": level})}),
            reply_to=message,
        )

    return app


def unequal_grid(**options: object) -> LocalGrid:
    return LocalGrid(
        counting_app(), NODES, duration_s=lambda message, _: SECONDS[message.metadata.dst_node_id], **options
    )


def senders(replies: list[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


class TestTime:
    def test_replies_come_in_the_order_of_their_arrival(self):
        grid = unequal_grid()
        ids = grid.push_messages([ask(node) for node in NODES])
        assert grid.pull_messages(ids) == []
        seen = []
        while (at_s := grid.next_arrival_s()) is not None:
            grid.advance_to(at_s)
            seen += [(grid.now(), node) for node in senders(grid.pull_messages(ids))]
        assert seen == [(1.0, 22), (2.0, 33), (3.0, 11)]

    def test_replies_that_arrive_together_keep_the_order_of_their_messages(self):
        grid = LocalGrid(counting_app(), NODES)
        ids = grid.push_messages([ask(node) for node in (33, 11, 22)])
        grid.advance_to(1.0)
        replies = grid.pull_messages(reversed(ids))
        assert senders(replies) == [33, 11, 22]
        assert [reply.metadata.reply_to_message_id for reply in replies] == ids

    def test_a_reply_is_pulled_once_and_only_when_it_is_wanted(self):
        grid = unequal_grid()
        first, second = grid.push_messages([ask(11), ask(22)])
        grid.advance_to(5.0)
        assert senders(grid.pull_messages([second])) == [22]
        assert grid.pull_messages([second, "of another grid"]) == []
        assert grid.next_arrival_s() == 5.0
        assert senders(grid.pull_messages([first, second])) == [11]
        assert grid.next_arrival_s() is None

    def test_time_runs_forwards_only(self):
        grid = unequal_grid()
        grid.advance_to(2.0)
        with pytest.raises(ConfigError, match=r"needs a time from 2\.0 s on"):
            grid.advance_to(1.0)

    def test_waiting_for_all_ends_with_the_last_or_at_the_limit(self):
        grid = unequal_grid()
        assert senders(grid.send_and_receive([ask(node) for node in NODES], timeout=10.0)) == [22, 33, 11]
        assert grid.now() == 3.0
        assert senders(grid.send_and_receive([ask(node) for node in NODES], timeout=2.5)) == [22, 33]
        assert grid.now() == 5.5


class TestNodes:
    def test_each_keeps_its_own_state_and_configuration(self):
        grid = LocalGrid(counting_app(), NODES, run_config={"lr": 0.1})
        counts = [
            [
                (reply.metadata.src_node_id, reply.content["metrics"]["messages"])
                for reply in grid.send_and_receive(asked)
            ]
            for asked in ([ask(11)], [ask(11), ask(22)])
        ]
        assert counts == [[(11, 1)], [(11, 2), (22, 1)]]

    def test_what_an_app_does_to_its_message_stays_with_it(self):
        grid = LocalGrid(counting_app(), NODES)
        shared = RecordDict({"config": ConfigRecord({"rate": 1})})
        grid.send_and_receive([Message(shared, node, "train") for node in NODES])
        assert dict(shared["config"]) == {"rate": 1}

    def test_a_node_that_joins_takes_part_and_one_that_left_is_answered_for(self):
        grid = unequal_grid()
        ids = grid.push_messages([ask(11), ask(22)])
        grid.advance_to(1.0)
        grid.remove_node(22)  # its reply is here already
        grid.remove_node(11)
        grid.add_node(44, {"partition-id": 3})
        replies = grid.pull_messages(ids)
        assert [reply.has_error() for reply in replies] == [True, False]
        assert replies[0].error.code == ErrorCode.NODE_UNAVAILABLE
        assert grid.get_node_ids() == [33, 44]
        assert [node.node_id for node in grid.get_nodes()] == [33, 44]
        (late,) = grid.send_and_receive([ask(11)])
        assert late.error.code == ErrorCode.NODE_UNAVAILABLE
        assert late.metadata.src_node_id == SUPERLINK_NODE_ID  # as Flower's own server answers in its place

    def test_a_number_is_given_once(self):
        grid = unequal_grid()
        with pytest.raises(ConfigError, match="node 11: needs a number of its own"):
            grid.add_node(11, {})
        with pytest.raises(ConfigError, match="node 99: needs to be there"):
            grid.remove_node(99)

    def test_a_second_message_reaches_a_node_before_others_have_answered(self):
        def asking_back(message: Message, context: Context) -> Message:
            step = context.state.setdefault("step", MetricRecord({"number": 0}))
            step["number"] += 1
            kind = "question" if step["number"] == 1 else "result"
            return Message(RecordDict({"about": ConfigRecord({"kind": kind})}), reply_to=message)

        grid = LocalGrid(asking_back, NODES, duration_s=lambda message, _: SECONDS[message.metadata.dst_node_id])
        slow, quick = grid.push_messages([ask(11), ask(22)])
        grid.advance_to(1.0)
        (question,) = grid.pull_messages([quick])
        assert question.content["about"]["kind"] == "question"
        (answer,) = grid.push_messages([ask(22)])
        grid.advance_to(2.0)
        (result,) = grid.pull_messages([slow, answer])
        assert result.content["about"]["kind"] == "result"


class TestFailures:
    def test_an_exception_is_a_reply_with_an_error_and_leaves_the_state_as_it_was(self):
        grid = LocalGrid(counting_app(), NODES)
        (reply,) = grid.send_and_receive([ask(11, fails=True)])
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "OSError" in reply.error.reason
        assert "no space left" in reply.error.reason
        (reply,) = grid.send_and_receive([ask(11)])
        assert reply.content["metrics"]["messages"] == 1

    def test_an_action_that_the_app_does_not_know_is_an_error_too(self):
        grid = LocalGrid(counting_app(), NODES)
        (reply,) = grid.send_and_receive([Message(RecordDict(), 11, "query.caps")])
        assert "No query function registered" in reply.error.reason

    def test_an_app_that_returns_no_message_fails(self):
        (reply,) = LocalGrid(lambda message, context: None, NODES).send_and_receive([ask(11)])
        assert "must return a Message, found NoneType" in reply.error.reason

    def test_silence_lasts_until_the_limit(self):
        grid = unequal_grid(silent=lambda message: message.metadata.dst_node_id == 22)
        replies = grid.send_and_receive([ask(node) for node in NODES], timeout=60.0)
        assert senders(replies) == [33, 11]
        assert grid.now() == 60.0
        with pytest.raises(ConfigError, match="1 of 1 replies never come"):
            grid.send_and_receive([ask(22)])


class TestStrategies:
    def test_flowers_own_averaging_runs_over_it(self):
        grid = unequal_grid()
        result = FedAvg().start(grid, ArrayRecord({"w": Array(np.zeros(4, np.float32))}), num_rounds=3)
        assert np.allclose(result.arrays["w"].numpy(), 6.0)  # three rounds of the mean of 1, 2 and 3
        assert [round(metrics["level"], 5) for metrics in result.evaluate_metrics_clientapp.values()] == [2.0, 4.0, 6.0]
        assert grid.now() == 3 * (3.0 + 3.0)

    def test_asynchronous_merging_lets_quick_nodes_do_more(self):
        grid = unequal_grid()
        model, done, sender_of = np.zeros(1), [], {}

        def send(node: int) -> None:
            content = RecordDict({"config": ConfigRecord(), "arrays": ArrayRecord({"w": Array(model)})})
            (number,) = grid.push_messages([Message(content, node, "train")])
            sender_of[number] = node

        for node in NODES:
            send(node)
        while (at_s := grid.next_arrival_s()) is not None and at_s <= 12.0:
            grid.advance_to(at_s)
            for reply in grid.pull_messages(sender_of):
                node = sender_of.pop(reply.metadata.reply_to_message_id)
                model = 0.5 * model + 0.5 * reply.content["arrays"]["w"].numpy()
                done.append(node)
                send(node)
        assert {node: done.count(node) for node in NODES} == {11: 4, 22: 12, 33: 6}
        assert done[:6] == [22, 33, 22, 11, 22, 33]
        assert model[0] > 1.0
