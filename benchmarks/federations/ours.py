"""The job by FedHybrid's public interface: `fedhybrid.run` with a recipe, its records and checkpoints written.

Data set, and for the empty job the method that trains nothing, are rows added to FedHybrid's tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from digits_job import BATCH, BRIGHTEST, CLIENTS, COHORT, LR, MOMENTUM, SEED, Job, OnRound, report

from fedhybrid import run
from fedhybrid.data import DATASETS, Dataset, ImageSplit
from fedhybrid.methods import METHODS
from fedhybrid.methods.averaging import AbstractAveraging
from fedhybrid.protocols import ClientRuntime, Optimizer
from fedhybrid.records import ClientTask, Update

__all__ = ["play"]


@dataclass(frozen=True, kw_only=True)
class Idle(AbstractAveraging):
    """FedAvg without a step: the weights go in and come back."""

    @property
    def plans(self) -> bool:
        """No plans."""
        return False

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The configured one; its state starts afresh for each task."""
        return base

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """Loads the weights and sends them back."""
        client.load(task.weights)
        return Update(
            client=task.client,
            round_index=task.round_index,
            weights=client.weights(),
            num_samples=client.num_samples,
            samples_seen=client.num_samples,
            steps=0,
            loss_mean=0.0,
            squared_loss_sum=0.0,
            measured_peak_bytes=client.measured_peak_bytes,
        )


class _Listener:
    """A progress that hears of rounds and of nothing else."""

    def __init__(self, on_round: OnRound) -> None:
        self._on_round = on_round

    def on_round(self, label: str, record: Any) -> None:
        self._on_round(record.accuracy)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given, **named: None


def play(job: Job, rounds: int, on_round: OnRound, cores: int) -> None:
    """All rounds, with as many workers as `cores`, in a folder that is thrown away afterwards."""
    DATASETS["digits-8x8"] = lambda root: _dataset(job)
    METHODS["idle"] = Idle
    recipe = {
        "method": "fedavg" if job.epochs else "idle",
        "policy": "uniform",
        "model": "digits_job:make_model",
        "dataset": "digits-8x8",
        "rounds": rounds,
        "seed": SEED,
        "workers": cores,
        "data": {"clients": CLIENTS, "partition": "natural"},
        "fleet": {"clients_per_round": COHORT},
        "train": {"batch_size": BATCH, "epochs": 1, "lr": LR, "momentum": MOMENTUM},
    }
    with TemporaryDirectory() as folder:
        run(recipe, out=Path(folder) / "run", progress=_Listener(on_round))


def _dataset(job: Job) -> Dataset:
    owner = np.empty(len(job.train_y), dtype=np.int64)
    for client, rows in enumerate(job.shards):
        owner[rows.numpy()] = client
    statistics: dict[str, Any] = {"mean": (0.0,), "std": (BRIGHTEST / 255,)}
    train, test = ((x * BRIGHTEST).round().byte() for x in (job.train_x, job.test_x))
    return Dataset(
        name="digits-8x8",
        train=ImageSplit(images=train, labels=job.train_y, **statistics),
        test=ImageSplit(images=test, labels=job.test_y, **statistics),
        classes=10,
        natural_ids=owner,
    )


if __name__ == "__main__":
    report("ours", play)
