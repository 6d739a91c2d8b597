"""Coded rows: made once on each client, added up at the server, which takes gradients from the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedhybrid.protocols import ClientRuntime
from fedhybrid.records import ClientTask, Update
from fedhybrid.tree import Tensors

__all__ = ["SEED", "CodedSet", "coded_gradient", "encoded", "joined", "row_variance", "split"]

_PREFIX = "coded/"
_TENSORS = ("x", "y", "clients", "samples", "sigma", "largest", "lr", "steps", "seed")
_FIGURES = ("sigma", "largest", "lr", "steps", "seed")  # of an update that holds rows
_ROWS = ["coded_x", "coded_y"]
SEED = "seed"  # option of tasks


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CodedSet:
    """What the server knows of its clients' samples, as it is kept in `ServerState.extra`.

    Attributes:
        head: Path of the layer that learns.
        x: Coded inputs, the sum over clients, (rows, features).
        y: Coded targets, (rows, classes).
        clients: Numbers of those who have sent rows, int64, ascending.
        samples: How many samples each of them holds, int64.
        sigma: The standard deviation of the noise that each has added to `x`, float64.
        largest: The largest magnitude among the features of each, float64.
        lr: The learning rate of the clients' steps, float64, a scalar.
        steps: How many steps each of them makes in a round, int64.
        seed: Of the server's draws of rows, int64, a scalar; it comes from the run's.
    """

    head: str
    x: Tensor
    y: Tensor
    clients: Tensor
    samples: Tensor
    sigma: Tensor
    largest: Tensor
    lr: Tensor
    steps: Tensor
    seed: Tensor

    @property
    def noise(self) -> float:
        """S2, the variance of the noise of each entry of `x`."""
        return float(self.sigma.square().sum())

    @property
    def total_samples(self) -> int:
        """Of all these clients."""
        return int(self.samples.sum())

    @property
    def usual_steps(self) -> int:
        """The clients' steps in a round, their mean by samples."""
        return max(1, round(float((self.samples * self.steps).sum()) / max(self.total_samples, 1)))

    @property
    def lr_steps(self) -> float:
        """How far a unit of gradient moves W in a round."""
        return float(self.lr) * self.usual_steps

    def to_extra(self) -> Tensors:
        """As named tensors; the path is part of their names."""
        return {f"{_PREFIX}{self.head}/{name}": getattr(self, name) for name in _TENSORS}

    @classmethod
    def of_extra(cls, extra: Mapping[str, Tensor]) -> CodedSet | None:
        """What `to_extra` gave; None where there is none."""
        for name in extra:
            if name.startswith(_PREFIX) and name.endswith("/x"):
                head = name.removeprefix(_PREFIX).removesuffix("/x")
                return cls(head=head, **{each: extra[f"{_PREFIX}{head}/{each}"] for each in _TENSORS})
        return None

    @classmethod
    def summed(cls, updates: Sequence[Update]) -> CodedSet | None:
        """The set of these clients' rows, summed in float64; None where nobody has sent any.

        What an update must hold is looked at: it comes from outside.
        """
        known = [update for update in updates if all(_is_figure(update.metrics.get(name)) for name in _FIGURES)]
        known = [update for update in known if sorted(name.rpartition(".")[2] for name in update.weights) == _ROWS]
        if not known:
            return None
        head = min(known[0].weights).rpartition(".")[0]

        def total(name: str) -> Tensor:
            rows = [update.weights[f"{head}.{name}" if head else name] for update in known]
            return torch.stack([tensor.double() for tensor in rows]).sum(dim=0).to(rows[0].dtype)

        def figures(name: str) -> Tensor:
            return torch.tensor([update.metrics[name] for update in known], dtype=torch.float64)

        return cls(
            head=head,
            x=total("coded_x"),
            y=total("coded_y"),
            clients=torch.tensor([update.client for update in known]),
            samples=torch.tensor([update.num_samples for update in known]),
            sigma=figures("sigma"),
            largest=figures("largest"),
            lr=figures("lr").median(),
            steps=figures("steps").long(),
            seed=figures("seed").median().long(),
        )


def _is_figure(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 0


def encoded(
    task: ClientTask,
    client: ClientRuntime,
    names: Sequence[str],
    *,
    noise: float,
    steps: int,
    labels: Tensor | None = None,
    scale: float = 1.0,
) -> Update:
    """Codes each of the client's samples once: G X + V and G Y, of which G and V are drawn and forgotten.

    The step holds as many rows as its client has memory for; more take more passes over the samples. Noise is added row
    by row, in place, so it needs less than a step does. A block of rows is on the device until it is finished and is
    sent then: what is kept here is what has left, and the update is all of it.

    Args:
        task: Its submodel is an `encoding_step`; its options hold the seed for the server's draws (`tasks`).
        client: Whose samples.
        names: The coded tensors (`steps.coded_names`).
        noise: Standard deviation of V, in units of the root mean square of this client's features.
        steps: That the client will make in a round, for the server to know.
        labels: What the step is told of each sample in place of its label, by positions; see `steps.Coder`.
        scale: Of samples whose label is not of the second half.
    """
    rows_x, rows_y, factor, all_x, all_y = names
    live = client.tensors
    told = client.labels if labels is None else labels
    start = {**task.weights, factor: torch.full_like(task.weights[factor], scale)}
    blocks: list[tuple[Tensor, Tensor]] = []
    figures: list[Tensor] = []
    sigma, largest = 0.0, 0.0
    while sum(len(x) for x, _ in blocks) < len(task.weights[all_x]):
        client.load(start)
        figures = [_coded(client, positions, told, task.work.batch_size) for positions in _passes(client, task)]
        seen = torch.cat(figures)
        sigma, largest = noise * math.sqrt(float(seen[:, 0].mean())), float(seen[:, 1].max())
        with torch.no_grad():
            for row in live[rows_x] if sigma else ():
                row.add_(sigma * torch.randn_like(row))
        blocks.append((live[rows_x].detach().clone(), live[rows_y].detach().clone()))
    coded_x, coded_y = (torch.cat(parts)[: len(task.weights[all_x])] for parts in zip(*blocks, strict=True))
    return Update(
        client=task.client,
        round_index=task.round_index,
        weights={all_x: coded_x, all_y: coded_y},
        num_samples=client.num_samples,
        samples_seen=client.num_samples * len(blocks),
        steps=len(figures) * len(blocks),
        loss_mean=0.0,
        squared_loss_sum=0.0,
        measured_peak_bytes=client.measured_peak_bytes,
        kind=task.kind,
        metrics={
            "sigma": sigma,
            "largest": largest,
            "lr": task.work.lr,
            "steps": float(steps),
            "seed": float(task.options[SEED]),
        },
    )


def _passes(client: ClientRuntime, task: ClientTask) -> tuple[Tensor, ...]:
    """Positions of all samples, batch by batch; the last may be shorter."""
    return torch.split(torch.arange(client.num_samples), task.work.batch_size)


def _coded(client: ClientRuntime, positions: Tensor, told: Tensor, batch_size: int) -> Tensor:
    """One step; the figures of its samples, see `steps.Coder`. A short batch is filled up with what does not count."""
    missing = batch_size - len(positions)
    x, _ = client.batch(torch.cat([positions, positions.new_zeros(missing)]))
    _, figures = client.step(x, torch.cat([told[positions], told.new_full((missing,), -1)]))
    return figures[: len(positions)].detach().double()


def coded_gradient(x: Tensor, y: Tensor, weight: Tensor, *, noise: float = 0.0) -> Tensor:
    """The estimate of X^T (X W - Y), the gradient of half the squared error of all samples together.

    Args:
        x: Coded inputs, (rows, features).
        y: Coded targets, (rows, classes).
        weight: W, (features, classes).
        noise: S2, whose bias the make-up term - S2 W takes back; 0 leaves it in.
    """
    return x.mT @ (x @ weight - y) / x.shape[0] - noise * weight


def row_variance(x: Tensor, y: Tensor, weight: Tensor, rows: int) -> float:
    """Variance of `coded_gradient` over the choice of so many rows, summed over its entries; measured on the rows.

    Each row alone is an estimate of the same gradient, and they are independent of each other.
    """
    if x.shape[0] < 2:
        return math.inf
    wrong = x @ weight - y
    squares = (x.square().sum(dim=1) * wrong.square().sum(dim=1)).mean()
    mean = x.mT @ wrong / x.shape[0]
    spread = (squares - mean.square().sum()).clamp(min=0.0) * x.shape[0] / (x.shape[0] - 1)
    return float(spread) / rows


def joined(weights: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """W of a linear layer, (features, classes), a bias as its last row; `names` are its weight's and bias's."""
    parts = [weights[names[0]].mT, *(weights[name].unsqueeze(0) for name in names[1:])]
    return torch.cat(parts, dim=0)


def split(joint: Tensor, names: Sequence[str]) -> Tensors:
    """The layer's tensors of a W."""
    features = joint.shape[0] - len(names) + 1
    made = {names[0]: joint[:features].mT.contiguous()}
    return made | {name: joint[features + at].clone() for at, name in enumerate(names[1:])}
