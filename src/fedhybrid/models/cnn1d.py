"""A small convolutional network for signals over time: two convolutions with max-pooling, then one linear layer.

The one-dimensional twin of `cnn`, for windows of sensor signals such as UCI HAR's nine signals of 128 moments.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.parts import make_norm, require_shape, scaled

__all__ = ["Cnn1d"]

_KERNEL = 5


class Cnn1d(nn.Module):
    """Two convolutions over time with max-pooling and a linear layer; maps (b, c, t) to (b, classes), t at least 4."""

    def __init__(self, *, input_shape: tuple[int, ...], classes: int, width: float = 1.0, norm: str = "none") -> None:
        super().__init__()
        channels, moments = require_shape("cnn1d", input_shape, channels=1, moments=4)
        first, second = scaled(32, width), scaled(64, width)
        self.features = nn.Sequential(
            nn.Conv1d(channels, first, _KERNEL, padding=_KERNEL // 2),
            make_norm(norm, first, dimensions=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(first, second, _KERNEL, padding=_KERNEL // 2),
            make_norm(norm, second, dimensions=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
        )
        self.head = nn.Linear(second * (moments // 4), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return in_order(self.ordered(), x)

    def ordered(self) -> list[Part]:
        """Each convolution with what follows it up to the next, then the linear layer."""
        return [
            Part(name="conv1", holds=tuple(f"features.{i}" for i in range(4)), run=self.features[:4]),
            Part(name="conv2", holds=tuple(f"features.{i}" for i in range(4, 8)), run=self.features[4:]),
            Part(name="head", holds=("head",), run=lambda x: self.head(x.flatten(1))),
        ]
