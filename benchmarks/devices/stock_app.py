"""A ClientApp as people write it, for Flower's stock SuperNode: `torch.optim` on a quarter of the digits.

It travels to the node as Flower's app bundle and says in its metrics when its process was started and when its first
training step began. Nothing but torch, Flower and the loading of the data is imported.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedhybrid.data import load_dataset
from fedhybrid.models import find_factory

__all__ = ["app"]

app = ClientApp()


@app.train()
def _train(message: Message, context: Context) -> Message:
    """So many steps."""
    torch.set_num_threads(1)
    config = message.content["config"]
    data = load_dataset("digits").train
    model = find_factory(str(config["model"]))(input_shape=data.input_shape, classes=10)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch, first_s, cpu_s = int(config["batch"]), 0.0, 0.0
    for step in range(int(config["steps"])):
        rows = torch.arange(step * batch, (step + 1) * batch) % (len(data) // 4)
        x, y = data.batch(rows)
        first_s, cpu_s = first_s or time.clock_gettime(time.CLOCK_BOOTTIME), cpu_s or time.process_time()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    metrics = {
        "process-began-s": ticks / os.sysconf("SC_CLK_TCK"),
        "first-step-s": first_s,
        "cpu-before-first-step-s": cpu_s,
        "cpu-s": time.process_time(),
    }
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)
