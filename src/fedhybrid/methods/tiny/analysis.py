"""Measures what training each part of a network adds: the server's preparation, on public data, once for a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.executor import SGD, TrainStep, prepare_step
from fedhybrid.methods.tiny.schemes import DENOMINATORS, Scheme
from fedhybrid.methods.tiny.search import Contributions
from fedhybrid.methods.tiny.weights import for_device, submodel_of
from fedhybrid.models.quantised import QuantisedNet
from fedhybrid.opwork import OpWork
from fedhybrid.protocols import Submodel
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import load_into, tensors_of

__all__ = ["Task", "measured_contributions", "trained_accuracy"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A small training run: what a scheme is judged by.

    Attributes:
        train: Samples and labels, as tensors.
        test: Others, on which accuracy is measured.
        epochs: Passes over `train`; the rest of an epoch that fills no batch is left out.
        batch_size: Samples of a step.
        lr: Learning rate of plain SGD.
        seed: Decides the order of samples and the rounding.
        integer: Trained weights are int8, with steps rounded at random.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    epochs: int
    batch_size: int
    lr: float
    seed: int = 0
    integer: bool = False


def trained_accuracy(net: QuantisedNet, scheme: str, task: Task) -> float:
    """Share of test samples that the network gets right after training by the scheme; it is not changed itself."""
    whole = Submodel(module=net, loss_fn=F.cross_entropy, optimizer=SGD(lr=task.lr))
    made = submodel_of(whole, scheme, integer=task.integer)
    load_into(tensors_of(made.module), for_device(tensors_of(net), scheme, integer=task.integer, seed=task.seed))
    x, y = task.train
    example = (x[: task.batch_size].clone(), y[: task.batch_size].clone())
    prepared = prepare_step(made.module, made.loss_fn, example, made.optimizer, op_seconds=_no_seconds)
    step = TrainStep(prepared, prepared.keep_all())
    generator = torch.Generator().manual_seed(derive_seed(task.seed, purpose="order"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        for _ in range(task.epochs):
            for chosen in torch.split(torch.randperm(len(x), generator=generator), task.batch_size):
                if len(chosen) == task.batch_size:
                    step(x[chosen], y[chosen])
    return _accuracy(made.module, task)


def _no_seconds(work: OpWork) -> float:
    """Nothing is planned by seconds here."""
    return 0.0


def _accuracy(module: torch.nn.Module, task: Task) -> float:
    x, y = task.test
    with torch.no_grad():
        right = [(module(x[n : n + 256]).argmax(1) == y[n : n + 256]).sum() for n in range(0, len(x), 256)]
    return int(torch.stack(right).sum()) / len(x)


def measured_contributions(
    net: QuantisedNet, task: Task, *, layers: Sequence[int] | None = None, divisors: Sequence[int] = DENOMINATORS
) -> Contributions:
    """Trains once for each number of biases and for each layer and share of its channels, and compares accuracies.

    Args:
        net: Quantised from a network that was trained on other data or classes.
        task: What it is trained on.
        layers: Whose weights are tried; all of them where None.
        divisors: Of their input channels.

    Source: J. Lin et al., "On-Device Training Under 256KB Memory", NeurIPS 2022, section 3.2 (contribution analysis).
    """
    count = len(net.graph.convs)
    reached = [trained_accuracy(net, Scheme(biases=k).name, task) for k in range(count + 1)]
    weights = {
        (layer, divisor): trained_accuracy(net, Scheme(biases=count, weights={layer: divisor}).name, task) - reached[-1]
        for layer in (range(count) if layers is None else layers)
        for divisor in divisors
    }
    return Contributions(biases=tuple(accuracy - reached[0] for accuracy in reached), weights=weights)
