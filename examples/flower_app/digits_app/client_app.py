"""The client. Lines that FedHybrid needs are marked; the numbers are those of README.md."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app.task import Net, accuracy, batches_of, loss_fn
from fedhybrid import SGD
from fedhybrid.integrations.flower import answer_query, planned_step, step_metrics

app = ClientApp()
SIMULATED = ("8 MiB", "1.3 MiB", "900 KiB")  # budgets of simulated nodes; real ones get theirs in --node-config


def my_batches(context: Context) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return batches_of(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))


@app.query("fedhybrid")
def query(message: Message, context: Context) -> Message:
    budget = context.node_config.get("budget", SIMULATED[int(context.node_config["partition-id"]) % 3])
    return answer_query(message, context, budget=budget, num_examples=32 * len(my_batches(context)))  # FedHybrid 1


@app.train()
def train(message: Message, context: Context) -> Message:
    net, batches = Net(), my_batches(context)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = SGD(lr=float(context.run_config["lr"]), momentum=0.9)
    step = planned_step(message, net, loss_fn, batches[0], optimizer)  # FedHybrid 2
    losses = [float(step(x, y)) for x, y in batches]  # FedHybrid 3
    metrics = MetricRecord({"train_loss": sum(losses) / len(losses), "num-examples": 32 * len(batches)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    content["fedhybrid"] = step_metrics(step)  # FedHybrid 4
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    net, batch = Net(), my_batches(context)[0]
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    metrics = MetricRecord({"accuracy": accuracy(net, batch), "num-examples": len(batch[1])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
