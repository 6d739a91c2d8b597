"""The job that every contender does: data, who holds them, cohorts, batches, model, settings; and how each reports.

scikit-learn's digits (1500 to train, 297 to test, 8 x 8) are dealt to 20 clients by Dirichlet(0.5). Each round ten of
them train one epoch in batches of 16 with SGD (0.05, momentum 0.9) on a CNN of 13,706 parameters; their models are
averaged by samples, and the mean is tested. Cohorts and batches are those that FedHybrid draws for this seed (its
`seeds.py`, `selection/sampling.py` and `engine/runtime.py` by the same rules in a few lines), so that all contenders
make the same steps on the same samples, and end with the same model up to rounding.

The empty job trains nothing: weights in, no steps, weights averaged. It tests on one image, so as not to time that.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = [
    "BATCH", "BRIGHTEST", "CLIENTS", "COHORT", "LR", "MOMENTUM", "SEED", "Job", "OnRound", "Play",
    "accuracy", "load_job", "make_model", "report",
]  # fmt: skip

CLIENTS, COHORT, BATCH, LR, MOMENTUM, SEED = 20, 10, 16, 0.05, 0.9, 1
BRIGHTEST = 16  # values are 0 to 16
_TRAIN, _ALPHA = 1500, 0.5
_COMMAND_BEGAN_TICKS = 19  # of what stands behind the name in /proc/self/stat

OnRound = Callable[[float], None]  # is given the accuracy after the round


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Images (n, 1, 8, 8) from 0 to 1, labels, and for each client the rows of its training samples, ascending."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    shards: tuple[Tensor, ...]
    epochs: int

    def cohort(self, round_index: int) -> list[int]:
        """Ten different clients, ascending."""
        seed = derive_seed(derive_seed(SEED, "select", round_index), "selection", round_index)
        chosen = np.random.default_rng(seed).choice(np.arange(CLIENTS), size=COHORT, replace=False, shuffle=False)
        return sorted(chosen.tolist())

    def batches(self, round_index: int, client: int) -> Iterator[Tensor]:
        """Rows of each batch in an order drawn anew; the last one is filled up from the start of one more order."""
        if not self.epochs:
            return
        seed = derive_seed(derive_seed(SEED, "train", round_index, client), "batches")
        generator = torch.Generator().manual_seed(seed)
        held = self.shards[client]
        size = -(-len(held) // BATCH) * BATCH
        order = torch.randperm(len(held), generator=generator)
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(held), generator=generator)])
        for start in range(0, size, BATCH):
            yield held[order[start : start + BATCH]]

    def model(self) -> nn.Module:
        """The initial model."""
        torch.manual_seed(derive_seed(SEED, "model"))
        return make_model()


Play = Callable[[Job, int, OnRound, int], None]  # job, rounds, on_round, cores


def load_job(*, empty: bool = False) -> Job:
    """The job, or the empty one."""
    bundle = load_digits()
    images = torch.from_numpy(bundle.images.astype(np.float32) / BRIGHTEST).unsqueeze(1)
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    rng = np.random.default_rng(SEED)
    rows = torch.from_numpy(rng.permutation(len(labels)))
    train, test = rows[:_TRAIN], rows[_TRAIN:]
    return Job(
        train_x=images[train],
        train_y=labels[train],
        test_x=images[test][:1] if empty else images[test],
        test_y=labels[test][:1] if empty else labels[test],
        shards=_deal(labels[train].numpy(), rng),
        epochs=0 if empty else 1,
    )


def _deal(labels: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, ...]:
    owner = np.empty(len(labels), dtype=np.int64)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        cuts = np.cumsum(rng.dirichlet(np.full(CLIENTS, _ALPHA)))[:-1] * len(members)
        owner[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
    shards = tuple(torch.from_numpy(np.flatnonzero(owner == client)) for client in range(CLIENTS))
    assert all(map(len, shards))
    return shards


def make_model() -> nn.Module:
    """Two convolutions with max-pooling, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def derive_seed(run_seed: int, purpose: str, round_index: int = -1, client: int = -1) -> int:
    """As FedHybrid derives its seeds."""
    text = f"{run_seed}/{round_index}/{client}/{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def accuracy(job: Job, model: nn.Module) -> float:
    """Share of the test images that the model tells."""
    with torch.inference_mode():
        return (model(job.test_x).argmax(dim=1) == job.test_y).float().mean().item()


def report(contender: str, play: Play) -> None:
    """The command line of every contender: does the job, prints one JSON object as its last line."""
    parser = argparse.ArgumentParser(description=f"The digits job by {contender}.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--cores", type=int, default=1, help="processes that may train at the same time, where it can")
    parser.add_argument("--empty", action="store_true", help="train nothing: weights in, weights averaged")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line of words")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ends_s: list[float] = []
    accuracies: list[float] = []

    def on_round(found: float) -> None:
        ends_s.append(_since_start_s())
        accuracies.append(found)

    play(load_job(empty=given.empty), given.rounds, on_round, given.cores)
    total_s = _since_start_s()
    result = {
        "contender": contender,
        "rounds": len(ends_s),
        "cores": given.cores,
        "first_round_end_s": ends_s[0],
        "round_s": [end - start for start, end in itertools.pairwise(ends_s)],
        "total_s": total_s,
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
    }
    words = f"{contender}: {len(ends_s)} rounds, the first ended after {ends_s[0]:.2f} s, all after {total_s:.2f} s"
    print(json.dumps(result) if given.json else f"{words}; accuracy {accuracies[-1]:.3f}", flush=True)


def _since_start_s() -> float:
    """Seconds since this process was started (in steps of 10 ms), so that its imports count."""
    began_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_COMMAND_BEGAN_TICKS])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")
