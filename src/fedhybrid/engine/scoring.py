"""How good a run's model is after a round: on the test set, by task of a stream, as clients would answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhybrid.engine.evaluate import Evaluator
from fedhybrid.engine.federation import Federation
from fedhybrid.engine.states import ClientStates
from fedhybrid.protocols import ServerState
from fedhybrid.records import StreamTask
from fedhybrid.tree import Tensors

__all__ = ["Tested", "tested"]

_MOST_CLIENTS = 10  # whose own models are tested, where clients have some


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What a test found; `RoundRecord` says what each figure means, None where this round is not tested."""

    accuracy: float | None = None
    loss: float | None = None
    task: int | None = None
    task_accuracies: list[float] | None = None


def tested(
    job: Federation, evaluator: Evaluator, states: ClientStates, server: ServerState, now: StreamTask | None
) -> Tested:
    """Tests the global model or, where clients answer with their own, the mean over the first ten that have kept some.

    Args:
        job: The run.
        evaluator: Of the test split.
        states: What clients have kept.
        server: After the round.
        now: Which classes are on; None where all are.
    """
    evaluator.see(None if now is None else now.seen)
    answers = [evaluator.whole(weights) for weights in _models(job, states, server)]
    correct = torch.stack([right.to(torch.float64) for right, _ in answers]).mean(dim=0)
    loss = sum(_mean(losses) for _, losses in answers) / len(answers)
    return Tested(
        accuracy=_mean(correct),
        loss=loss if math.isfinite(loss) else None,
        task=None if now is None else now.index,
        task_accuracies=None if now is None else _by_task(job, now, correct, evaluator.labels),
    )


def _models(job: Federation, states: ClientStates, server: ServerState) -> Sequence[Tensors]:
    if not job.method.is_personal:
        return [server.weights]
    clients = states.known[:_MOST_CLIENTS]
    return [job.method.personal(job.model, server.weights, states[client]) for client in clients] or [server.weights]


def _by_task(job: Federation, now: StreamTask, correct: Tensor, labels: Tensor) -> list[float]:
    assert job.stream is not None
    tasks = job.stream.tasks[: now.index + 1]
    return [_mean(correct[torch.isin(labels, torch.tensor(task))]) for task in tasks]


def _mean(correct: Tensor) -> float:
    return float(correct.sum()) / max(len(correct), 1)
