"""Network, data and test: what any Flower app of this task has; nothing of FedHybrid."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

BATCH = 32
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Three convolutions and a linear layer, for images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.head(self.features(x).flatten(1))


def loss_fn(scores: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores, labels)


@cache
def digits() -> tuple[Batch, Batch]:
    """1,500 images to train with, the other 297 to test."""
    bundle = load_digits()
    x = torch.tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(bundle.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def batches_of(partition: int, partitions: int) -> list[Batch]:
    """A client's own batches; those left over that make no whole batch are not used."""
    x, y = digits()[0]
    rows = torch.arange(partition, len(y), partitions)
    return [(x[part], y[part]) for part in rows.split(BATCH) if len(part) == BATCH]


def accuracy(net: nn.Module, data: Batch) -> float:
    net.eval()
    with torch.no_grad():
        return float((net(data[0]).argmax(1) == data[1]).float().mean())
