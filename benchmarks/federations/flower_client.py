"""Flower's client: a module of its own, so that its worker processes import it once and keep job and model."""

from __future__ import annotations

from functools import cache

import torch
from bare import train
from digits_job import Job, load_job
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

__all__ = ["app"]

app = ClientApp()


@cache
def _held(empty: bool) -> tuple[Job, nn.Module]:
    torch.set_num_threads(1)
    job = load_job(empty=empty)
    return job, job.model()


@app.train()
def _train(message: Message, context: Context) -> Message:
    """Plays the client that the message names: in a simulation each node can, as all read the same data."""
    config = message.content["config"]
    job, model = _held(config["empty"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train(job, model, job.batches(config["server-round"] - 1, config["client"]))
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(job.shards[config["client"]])}),
        }
    )
    return Message(content, reply_to=message)
