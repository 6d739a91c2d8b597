"""HeteroFL's clients: a mask on classes that costs nothing in the step, and the statistics of batch norm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.federation_parts import BATCH, SHARDS, small_split
from torch import Tensor, nn
from torch.nn import functional as F

from fedhybrid.data import Split
from fedhybrid.engine.runtime import LocalClient, Station, Stretch, Workbench, classification_loss, one_thread
from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, TrainStep, prepare_step
from fedhybrid.methods import HeteroFL
from fedhybrid.models import build_model
from fedhybrid.models.narrowed import cut
from fedhybrid.models.shares import kept_shares
from fedhybrid.protocols import Submodel
from fedhybrid.records import ClientTask, LocalWork, Update
from fedhybrid.tree import buffers_of, detached_copy, tensors_of
from fedhybrid.updates import exact_bytes

WORK = LocalWork(epochs=2, batch_size=BATCH, lr=0.05)
METHOD = HeteroFL()
EMPTY = Update(
    client=0,
    round_index=0,
    weights={},
    num_samples=0,
    samples_seen=0,
    steps=0,
    loss_mean=0.0,
    squared_loss_sum=0.0,
    measured_peak_bytes=0,
)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with one_thread():
        yield


def model_of(norm: str) -> nn.Module:
    options = {"width": 0.25, "norm": norm}
    return build_model("cnn", input_shape=(1, 32, 32), classes=10, seed=0, options=options)


def few_classes(split: Split) -> np.ndarray:
    """The first samples of three classes."""
    return np.flatnonzero(np.isin(split.labels.numpy(), (1, 4, 7)))[:30]


def done(
    model: nn.Module, submodel: str, shard: np.ndarray, kind: str
) -> tuple[Update, ClientTask, Callable[[], LocalClient]]:
    """A client's task, and the client once more."""
    whole = Submodel(module=model, loss_fn=classification_loss, optimizer=SGD(lr=0.05, momentum=0.5))
    made = METHOD.submodel(whole, submodel)
    example = small_split().batch(torch.arange(BATCH))
    step = prepare_step(
        made.module, made.loss_fn, example, made.optimizer, op_seconds=lambda work: 1.0, forward_only=made.forward_only
    )
    station = Station(
        step=TrainStep(step, step.keep_all()), tensors=tensors_of(made.module), buffers=buffers_of(made.module)
    )
    stretches = [Stretch(program=step.keep_all(), steps=100)]
    task = ClientTask(
        round_index=0,
        client=0,
        weights=detached_copy(tensors_of(model if submodel in ("", "statistics", "w1.0") else made.module)),
        work=WORK,
        plan=None,
        seed=3,
        kind=kind,
        submodel=submodel,
        options={"head": "head"},
    )
    bench = Workbench(model=model, split=small_split(), station=lambda name: station)
    update = bench.run(METHOD, task, shard, stretches, {})
    return update, task, lambda: LocalClient(station=station, split=small_split(), shard=shard, stretches=stretches)


def test_held_rows_are_a_mask_on_the_scores() -> None:
    """Against torch.optim on scores that are masked to zero, with momentum."""
    shard, model = few_classes(small_split()), model_of("none")
    twin = copy.deepcopy(model)
    update, task, client = done(model, "w1.0", shard, "train")
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.5)
    absent = ~torch.isin(torch.arange(10), torch.tensor((1, 4, 7)))
    for x, y in client().batches(WORK, task.seed):
        optimizer.zero_grad()
        F.cross_entropy(twin(x).masked_fill(absent, 0.0), y).backward()
        optimizer.step()
    mine = {**update.weights}
    for name, parameter in twin.named_parameters():
        rows = ~absent if name.startswith("head.") else slice(None)
        torch.testing.assert_close(mine[name][rows], parameter.detach()[rows], rtol=1e-4, atol=1e-6)
    assert set(update.masks) == {"head.weight", "head.bias"}
    for name, mask in update.masks.items():
        assert torch.equal(mask.flatten(1).all(dim=1) if mask.ndim > 1 else mask, ~absent), name
    columns = task.weights["head.weight"].shape[1] + 1
    whole_bytes = sum(tensor.numel() * 4 for tensor in task.weights.values())
    sent_bytes = exact_bytes(update.weights, update.masks)
    bits = 10 * columns  # one an element says which rows are there
    assert whole_bytes - 7 * columns * 4 < sent_bytes <= whole_bytes - 7 * columns * 4 + bits / 8 + 8


def test_who_has_all_classes_masks_nothing() -> None:
    split = small_split()
    assert len(split.labels[torch.from_numpy(SHARDS[0])].unique()) == 10
    update, _, _ = done(model_of("none"), "w1.0", SHARDS[0], "train")
    assert update.masks == {}


def test_statistics_are_the_mean_over_batches() -> None:
    """Against hooks on a model that trains nothing; parameters stay what they were."""
    shard, model = SHARDS[0], model_of("batch")
    update, task, client = done(model, "statistics", shard, "close")
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in norms}
    for name, module in norms.items():
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(
                (inputs[0].mean(dim=(0, 2, 3)), inputs[0].var(dim=(0, 2, 3), unbiased=True))
            )
        )
    with torch.no_grad():
        for x, _ in client().batches(WORK, task.seed):
            model(x)
    assert set(update.weights) == {f"{name}.{which}" for name in norms for which in ("running_mean", "running_var")}
    for name, pairs in seen.items():
        for position, which in enumerate(("running_mean", "running_var")):
            expected = torch.stack([pair[position] for pair in pairs]).mean(dim=0)
            torch.testing.assert_close(update.weights[f"{name}.{which}"], expected, rtol=1e-4, atol=1e-5)
    assert update.steps == 10
    assert update.samples_seen == 80


def test_narrow_models_track_nothing() -> None:
    whole = Submodel(module=model_of("batch"), loss_fn=classification_loss, optimizer=SGD(lr=0.05))
    for name in METHOD.menu(whole.module):
        assert not buffers_of(METHOD.submodel(whole, name).module)
    assert METHOD.submodel(whole, "w1.0").module is not whole.module
    plain = Submodel(module=model_of("none"), loss_fn=classification_loss, optimizer=SGD(lr=0.05))
    assert METHOD.submodel(plain, "w1.0").module is plain.module


@pytest.mark.parametrize("name", ["char-lstm", "cnn1d", "vit"])
def test_each_element_is_the_mean_over_those_who_hold_it(name: str) -> None:
    """Against a mean element by element; heads and gates have shares of their own."""
    shape, options = {
        "char-lstm": ((6,), {"hidden": 8}),
        "cnn1d": ((3, 8), {"width": 0.25}),
        "vit": ((1, 8, 8), {"depth": 1, "dim": 12, "heads": 3}),
    }[name]
    plain = build_model(name, input_shape=shape, classes=10, seed=0, options=options)
    sample = torch.zeros(2, *shape, dtype=torch.int64 if name == "char-lstm" else torch.float32)
    model = METHOD.adapt(copy.deepcopy(plain), sample)
    start = detached_copy(tensors_of(model))
    total = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in start.items()}
    count = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in start.items()}
    updates = []
    for client, (rate, samples) in enumerate([(0.25, 30), (0.5, 10), (0.5, 20)]):
        shares = kept_shares(plain, rate)
        sent = {n: t + client + 1 for n, t in cut(start, shares).items()}
        updates.append(replace(EMPTY, client=client, weights=sent, num_samples=samples))
        for n, kept in shares.items():
            at = torch.meshgrid(
                [k.places(length) for k, length in zip(kept, start[n].shape, strict=True)], indexing="ij"
            )
            total[n][at] += samples * sent[n].double()
            count[n][at] += samples
    found = METHOD.aggregate(METHOD.init(start), updates).weights
    for n, tensor in start.items():
        expected = torch.where(count[n] > 0, total[n] / count[n].clamp(min=1), tensor.double()).to(tensor.dtype)
        torch.testing.assert_close(found[n], expected)
    assert any(bool((count[n] == 0).any()) and bool((count[n] > 0).any()) for n in start)


class Branches(nn.Module):
    """Two layers take the input; only one can be the first."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(3, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.left(x) + self.right(x)).mean(dim=2))


class Fixed(nn.Module):
    """Knows its number of channels where nobody can change it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).reshape(len(x), 8, -1).mean(dim=2))


class Tied(nn.Module):
    """One tensor is the first layer's and the last's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(dim=1))


@pytest.mark.parametrize(
    ("model", "sample", "words"),
    [
        (Branches(), torch.zeros(2, 3, 5), "share of 0.5 of its channels does not run"),
        (Fixed(), torch.zeros(2, 3, 5), "share of 0.5 of its channels does not run"),
        (Tied(), torch.zeros(2, 5, dtype=torch.int64), r"two names \(head.weight\)"),
    ],
)
def test_models_that_cannot_be_narrowed_are_refused_before_the_run(
    model: nn.Module, sample: Tensor, words: str
) -> None:
    assert model(sample).shape == (2, 10)
    with pytest.raises(ConfigError, match=words):
        METHOD.adapt(model, sample)


def test_rates_that_are_none() -> None:
    for rates in ("", "0.5 0.25", "1 1", "1 0.5 0", "1 half", "1 0.25 0.5"):
        with pytest.raises(ConfigError, match="rates must be shares that fall from 1"):
            HeteroFL(rates=rates)
