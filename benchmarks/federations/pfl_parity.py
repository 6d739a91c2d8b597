"""The job by pfl-research, in one process: its backend, model and optimizers; cohorts and batches are the job's.

Its own samplers draw with replacement or in turn, and its batches are never shuffled, so both are replayed here; its
average is weighted by samples only if asked for, which is done. The test set is scored without its metric classes, and
its metrics are not printed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from digits_job import BATCH, COHORT, LR, MOMENTUM, Job, OnRound, accuracy, report
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn, optim
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

__all__ = ["play"]

_ALL = 10**9  # samples in a batch: all that there are


class _Net(nn.Module):
    """The network with the two methods that pfl wants."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        return {"accuracy": Weighted((self.net(x).argmax(dim=1) == y).sum().item(), len(y))}


class _Replayed(Dataset):
    """A client's data in the job's order of that round."""

    def __init__(self, raw_data: tuple[Tensor, Tensor], job: Job, round_index: int, client: int) -> None:
        super().__init__(raw_data)
        self._job, self._round_index, self._client = job, round_index, client

    def iter(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        if batch_size == _ALL:  # asked for in the first round, whose clients are always evaluated
            yield self.raw_data
            return
        for rows in self._job.batches(self._round_index, self._client):
            yield self._job.train_x[rows], self._job.train_y[rows]


class _AfterRound(TrainingProcessCallback):
    def __init__(self, job: Job, on_round: OnRound) -> None:
        self._job, self._on_round = job, on_round

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self._on_round(accuracy(self._job, model.pytorch_model.net))
        return False, Metrics()


def play(job: Job, rounds: int, on_round: OnRound, cores: int) -> None:
    """All rounds in this process; `cores` is not read."""
    held = [(job.train_x[rows], job.train_y[rows]) for rows in job.shards]
    tasks = ((index, client) for index in itertools.count() for client in job.cohort(index))
    data = FederatedDataset(lambda task: _Replayed(held[task[1]], job, *task), lambda: next(tasks))
    net = _Net(job.model())
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds, evaluation_frequency=10**9, train_cohort_size=COHORT, val_cohort_size=0
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        model=PyTorchModel(
            model=net,
            local_optimizer_create=partial(optim.SGD, momentum=MOMENTUM),
            central_optimizer=optim.SGD(net.parameters(), lr=1.0),
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=job.epochs, local_learning_rate=LR, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=_ALL),
        callbacks=[_AfterRound(job, on_round)],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    report("pfl", play)
