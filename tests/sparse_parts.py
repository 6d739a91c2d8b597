"""Small federations of compact models without the engine's loop: one process, every client in every round."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedhybrid.data import Split
from fedhybrid.engine.runtime import LocalClient, Station, Stretch, classification_loss, one_thread, steps_of
from fedhybrid.executor import SGD, PreparedStep, TrainStep, prepare_step
from fedhybrid.methods.mest import Mest
from fedhybrid.methods.sparse import Mask, layouts_of
from fedhybrid.models.sparse import Layout, SparseConv2d, SparseLinear, compact_model, sparse_paths
from fedhybrid.protocols import Quote, RoundPlan, Submodel
from fedhybrid.records import LocalWork, TensorTimes, Update
from fedhybrid.tree import Tensors, buffers_of, detached_copy, load_into, tensors_of
from tests.federation_parts import DEVICES, small_split

WORK = LocalWork(epochs=1, batch_size=8, lr=0.05)
MOMENTUM = SGD(lr=0.05, momentum=0.5)
_STATIONS: dict[Any, Station] = {}  # a task's weights are loaded before anything is done there


class SmallNet(nn.Module):
    """Three convolutions, a hidden linear layer and a classifier; by default for 32 x 32 images."""

    def __init__(self, width: int = 8, side: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.hidden = nn.Linear(4 * width * (side // 8) ** 2, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.features(x).flatten(1))))  # type: ignore[no-any-return]


def small_net(seed: int = 0, width: int = 8, side: int = 32) -> SmallNet:
    """With weights of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet(width, side).train()


def layouts(model: nn.Module, scheme: str) -> dict[str, Layout]:
    """Of the layers that may be sparse."""
    paths = sparse_paths(model, scheme, ("*shortcut*",))
    return {p: Layout(scheme=scheme, shape=tuple(model.get_submodule(p).weight.shape)) for p in paths}


def compact_twin(dense: nn.Module, scheme: str, sparsity: float, choose: Callable[[Layout, Tensor], Mask]) -> nn.Module:
    """A compact copy; the dense model's weights become those of the copy."""
    found = layouts(dense, scheme)
    model = compact_model(dense, {path: (layout, layout.kept(sparsity)) for path, layout in found.items()})
    with torch.no_grad():
        for path, layout in found.items():
            weight, layer = dense.get_submodule(path).weight, model.get_submodule(path)
            assert isinstance(layer, SparseConv2d | SparseLinear)
            mask = choose(layout, weight)
            layer.places.copy_(mask.places)
            if layer.patterns is not None:
                layer.patterns.copy_(mask.patterns)
            layer.values.copy_(layout.gathered(weight, *mask))
            weight.copy_(layer.dense_weight())
    return model


def prepared(model: nn.Module, batch: tuple[Tensor, Tensor], optimizer: SGD | None = None) -> PreparedStep:
    """The model's captured step, priced for a laptop."""
    optimizer = optimizer or SGD(lr=0.1, momentum=0.9)
    return prepare_step(model, classification_loss, batch, optimizer, op_seconds=DEVICES["laptop"].op_time_s)


@dataclass(kw_only=True, eq=False)
class Costs:
    """Answers of a fleet in which each client can hold anything; what it was asked for is written down."""

    whole: Submodel
    example: tuple[Tensor, Tensor]
    samples: Mapping[int, int]
    asked: list[tuple[int, str]] = field(default_factory=list)

    def quote(self, client: int, submodel: str = "") -> Quote:
        self.asked.append((client, submodel))
        return Quote(plan=f"plan@{submodel}", peak_bytes=1, step_s=1.0)

    def budget_bytes(self, client: int) -> int:
        return 10**9

    def num_samples(self, client: int) -> int:
        return self.samples[client]

    def steps(self, client: int, work: LocalWork) -> int:
        return steps_of(work, self.samples[client])

    def link_s(self, client: int, *, bytes_up: int = 0, bytes_down: int = 0) -> float:
        return 0.0

    def step_seconds(self, submodel: str = "") -> tuple[float, ...]:
        return (1.0,)

    def tensor_times(self, client: int, submodel: str = "") -> TensorTimes:
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Group:
    """A method, its clients, and what they keep."""

    method: Mest
    model: nn.Module
    shards: Sequence[np.ndarray[Any, Any]]
    split: Split = field(default_factory=small_split)
    work: LocalWork = WORK
    optimizer: SGD = MOMENTUM
    offered: Mapping[int, str] = field(default_factory=dict)
    watch: Callable[[Station, str], None] | None = None

    def __post_init__(self) -> None:
        self.batch = self.split.batch(torch.arange(self.work.batch_size))
        self.adapted = self.method.adapt(self.model, self.batch[0])
        module = copy.deepcopy(self.adapted)
        self.whole = Submodel(
            module=module, loss_fn=classification_loss, optimizer=self.method.optimizer(self.optimizer)
        )
        self.states: dict[int, Tensors] = {client: {} for client in range(len(self.shards))}
        self.plan_costs = Costs(
            whole=self.whole, example=self.batch, samples={c: len(shard) for c, shard in enumerate(self.shards)}
        )
        self.server = self.method.init(detached_copy(tensors_of(self.adapted)))

    def station(self, name: str) -> Station:
        """Where this submodel is trained; groups of equal models share it, as capturing is what takes time."""
        shapes = tuple((tensor, tuple(p.shape)) for tensor, p in self.adapted.named_parameters())
        form = (shapes, self.method.scheme, self.method.keep_dense, bool(self.method.drop_ratio))
        key = (*form, name, self.optimizer, tuple(self.batch[0].shape))
        if key not in _STATIONS:
            made = self.method.submodel(self.whole, name)
            step = prepare_step(
                made.module, made.loss_fn, self.batch, made.optimizer, op_seconds=DEVICES["laptop"].op_time_s
            )
            _STATIONS[key] = Station(
                step=TrainStep(step, step.keep_all()), tensors=tensors_of(made.module), buffers=buffers_of(made.module)
            )
        return _STATIONS[key]

    def plan(self, run_seed: int = 3) -> RoundPlan:
        cohort = tuple(range(len(self.shards)))
        return RoundPlan(
            round_index=self.server.version,
            cohort=cohort,
            plans=dict.fromkeys(cohort),
            work=self.work,
            run_seed=run_seed,
            draw=self.server.version,
            costs=self.plan_costs,
            submodels=dict(self.offered),
        )

    def round(self) -> list[Update]:
        """One round; what clients send, in their order. `sent` is obeyed: what does not travel is not there."""
        updates = []
        for task in self.method.assign(self.server, self.plan()):
            station = self.station(task.submodel)
            steps = steps_of(task.work, len(self.shards[task.client]))
            stretches = [Stretch(program=station.step.prepared.keep_all(), steps=steps)]  # type: ignore[attr-defined]
            client = LocalClient(
                station=station,
                split=self.split,
                shard=self.shards[task.client],
                stretches=stretches,
                state=self.states[task.client],
            )
            station.step.set_lr(task.work.lr)
            weights = task.weights if task.sent is None else {name: task.weights[name] for name in task.sent}
            with one_thread():
                update = self.method.train(replace(task, weights=weights), client)
            if self.watch is not None:
                self.watch(station, task.submodel)
            if update.state is not None:
                self.states[task.client] = update.state
            updates.append(update)
        after = self.method.aggregate(self.server, updates)
        self.server = replace(after, version=self.server.version + 1, buffers=self.server.buffers)
        return updates

    def kept(self) -> dict[str, int]:
        """Units in each mask of the server."""
        return {path: len(self.server.extra[f"{path}.places"]) for path in layouts_of(self.server.weights, "irregular")}

    def accuracy(self, split: Split) -> float:
        """Of the global model."""
        load_into(tensors_of(self.adapted), self.server.weights)
        self.adapted.eval()
        with torch.no_grad(), one_thread():
            x, y = split.batch(torch.arange(len(split)))
            right = sum(
                int((self.adapted(part).argmax(1) == labels).sum())
                for part, labels in zip(x.split(500), y.split(500), strict=True)
            )
        self.adapted.train()
        return right / len(split)
