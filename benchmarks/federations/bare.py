"""The job as a loop by hand: one model reused, torch.optim's SGD anew for each client, a mean summed in place."""

from __future__ import annotations

from collections.abc import Iterator

from digits_job import LR, MOMENTUM, Job, OnRound, accuracy, report
from torch import Tensor, nn, optim
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

__all__ = ["BareLoop", "play", "train"]


class BareLoop:
    """The loop, one round at a time."""

    def __init__(self, job: Job) -> None:
        self.job, self.model = job, job.model()

    def play_round(self, round_index: int) -> float:
        """Accuracy after the round."""
        job, tensors = self.job, self.model.state_dict()
        start = {name: tensor.clone() for name, tensor in tensors.items()}
        mean = {name: tensor.new_zeros(tensor.shape) for name, tensor in tensors.items()}
        cohort = job.cohort(round_index)
        samples = sum(len(job.shards[client]) for client in cohort)
        for client in cohort:
            self.model.load_state_dict(start)
            train(job, self.model, job.batches(round_index, client))
            for name, tensor in tensors.items():
                mean[name].add_(tensor, alpha=len(job.shards[client]) / samples)
        self.model.load_state_dict(mean)
        return accuracy(job, self.model)


def train(job: Job, model: nn.Module, batches: Iterator[Tensor]) -> None:
    """One client's steps in place."""
    optimizer = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(job.train_x[rows]), job.train_y[rows]).backward()
        optimizer.step()


def play(job: Job, rounds: int, on_round: OnRound, cores: int) -> None:
    """All rounds in this process; `cores` is not read."""
    loop = BareLoop(job)
    for round_index in range(rounds):
        on_round(loop.play_round(round_index))


if __name__ == "__main__":
    report("bare", play)
