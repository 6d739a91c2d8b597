"""Transfer on real images: a float network, its int8 twin with and without gradient scaling, the search."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedhybrid.data import Split, load_dataset
from fedhybrid.executor import SGD, TrainStep, prepare_step
from fedhybrid.methods.tiny import (
    Evolution,
    Scheme,
    Task,
    find_scheme,
    last_layers,
    measured_contributions,
    trained_accuracy,
    update_memory,
)
from fedhybrid.models.quantised import quantise
from fedhybrid.models.quantised.convert import FloatNetwork, read_network

ROOT = Path(os.environ.get("FEDHYBRID_DATA") or "FEDHYBRID_DATA is not set")
RATES = (0.03, 0.1, 0.3, 1.0)
BATCH = 32

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "FashionMNIST" / "raw").is_dir(), reason="needs FEDHYBRID_DATA with FashionMNIST/raw"
    ),
]


def images(split: Split, classes: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """So many images of these classes, as many of each, shuffled; classes counted from 0."""
    labels = torch.as_tensor(split.labels)
    each = count // len(classes)
    chosen = torch.cat([torch.nonzero(labels == label).flatten()[:each] for label in classes])
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    x, y = split.batch(chosen)
    return x, y - min(classes)


def fit(model: nn.Module, data: tuple[Tensor, Tensor], optimizer: SGD, epochs: int) -> None:
    x, y = data
    prepared = prepare_step(model, F.cross_entropy, (x[:BATCH].clone(), y[:BATCH].clone()), optimizer)
    step = TrainStep(prepared, prepared.keep_all())
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(x), generator=generator), BATCH):
            if len(chosen) == BATCH:
                step(x[chosen], y[chosen])


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    x, y = data
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


class Folded(nn.Module):
    """The float network that is quantised: batch norm folded, every weight trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network: FloatNetwork = read_network(model)
        self.weights, self.biases = nn.ParameterList(self.network.weights), nn.ParameterList(self.network.biases)
        assert self.network.head is not None
        self.head = nn.Linear(self.network.head.in_features, self.network.head.out_features)
        self.head.load_state_dict(self.network.head.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        self.network.weights, self.network.biases = list(self.weights), list(self.biases)
        return self.head(self.network.outputs(x)[-1].flatten(1))  # type: ignore[no-any-return]


@functools.cache
def scene() -> tuple[nn.Module, Task]:
    """A network trained on five kinds of clothes, with a new classifier for five others, and those."""
    data = load_dataset("fashion-mnist", ROOT)
    units: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for before, after in ((1, 8), (8, 16), (16, 32)):
            units += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            units += [nn.MaxPool2d(2)] if after < 32 else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)]
        model = nn.Sequential(*units)
        fit(model, images(data.train, range(5), 5000), SGD(lr=0.05, momentum=0.9), epochs=3)
        torch.manual_seed(5)
        units[-1].reset_parameters()  # type: ignore[operator]
    task = Task(
        train=images(data.train, range(5, 10), 2000),
        test=images(data.test, range(5, 10), 2000),
        epochs=5,
        batch_size=BATCH,
        lr=0.1,
    )
    return model.eval(), task


@pytest.mark.timeout(900)
def test_scaled_int8_is_as_good_as_float_and_plain_int8_is_not() -> None:
    """2000 images, the same rates for all; at each its best."""
    model, task = scene()
    best = dict.fromkeys(("float", "scaled", "stored", "plain"), 0.0)
    for lr in RATES:
        exact = Folded(model)
        fit(exact, task.train, SGD(lr=lr), task.epochs)
        found = {"float": accuracy(exact, task.test)}
        for name, qas, integer in (("scaled", True, False), ("stored", True, True), ("plain", False, False)):
            net = quantise(model, task.train[0][:256], qas=qas, headroom=2.0)
            run = Task(train=task.train, test=task.test, epochs=task.epochs, batch_size=BATCH, lr=lr, integer=integer)
            found[name] = trained_accuracy(net, "full", run)
        print(lr, found)
        best = {name: max(value, found[name]) for name, value in best.items()}
    print(best)
    assert best["float"] > 0.85
    assert best["scaled"] >= best["float"] - 0.02
    assert best["stored"] >= best["float"] - 0.02
    assert best["plain"] <= best["scaled"] - 0.03
    assert best["plain"] <= best["float"] - 0.03


@pytest.mark.timeout(900)
def test_search_over_measured_contributions() -> None:
    """At the memory of the last layer the found scheme is predicted to add more, and does not do worse."""
    model, task = scene()
    net = quantise(model, task.train[0][:256], headroom=2.0)
    x, y = task.train
    short = Task(train=(x[:640], y[:640]), test=task.test, epochs=3, batch_size=BATCH, lr=0.1)
    contributions = measured_contributions(net, short)
    channels = [conv.channels_in for conv in net.graph.convs]
    one = Scheme(biases=1, weights={2: 1})
    budget = update_memory(net.graph, one.updates(channels)).total_bytes

    def fits(scheme: Scheme) -> bool:
        return update_memory(net.graph, scheme.updates(channels)).total_bytes <= budget

    found, last = find_scheme(contributions, fits, options=Evolution(seed=1)), last_layers(3, fits)
    print(contributions, found, last)
    assert fits(found)
    assert last == one
    assert contributions.predicted(found) > contributions.predicted(last)
    assert trained_accuracy(net, found.name, task) >= trained_accuracy(net, last.name, task) - 0.02
