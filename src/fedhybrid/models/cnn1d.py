"""A small convolutional network for signals over time: convolutions, twice max-pooling, then one linear layer.

The one-dimensional twin of `cnn`, for windows of sensor signals such as UCI HAR's nine signals of 128 moments.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.parts import make_norm, require_shape, scaled

__all__ = ["Cnn1d"]

_KERNEL = 5


class Cnn1d(nn.Module):
    """Convolutions over time with max-pooling and a linear layer; maps (b, c, t) to (b, classes), t at least 4.

    `depth` convolutions stand before each of the two poolings.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        width: float = 1.0,
        depth: int = 1,
        norm: str = "none",
    ) -> None:
        super().__init__()
        channels, moments = require_shape("cnn1d", input_shape, channels=1, moments=4)
        if depth < 1:
            raise ConfigError(f"model 'cnn1d': depth must be at least 1, got {depth}")
        first, second = scaled(32, width), scaled(64, width)
        self._half = 3 * depth + 1
        self.features = nn.Sequential(*_stage(channels, first, depth, norm), *_stage(first, second, depth, norm))
        self.head = nn.Linear(second * (moments // 4), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return in_order(self.ordered(), x)

    def ordered(self) -> list[Part]:
        """The convolutions up to each pooling and it, then the linear layer."""
        half = self._half
        return [
            Part(name="conv1", holds=_features(0, half), run=self.features[:half]),
            Part(name="conv2", holds=_features(half, 2 * half), run=self.features[half:]),
            Part(name="head", holds=("head",), run=lambda x: self.head(x.flatten(1))),
        ]


def _stage(channels: int, width: int, depth: int, norm: str) -> list[nn.Module]:
    """Convolutions with what follows each, then the pooling."""
    layers: list[nn.Module] = []
    for number in range(depth):
        given = width if number else channels
        layers += [
            nn.Conv1d(given, width, _KERNEL, padding=_KERNEL // 2),
            make_norm(norm, width, dimensions=1),
            nn.ReLU(),
        ]
    return [*layers, nn.MaxPool1d(2)]


def _features(begin: int, end: int) -> tuple[str, ...]:
    return tuple(f"features.{i}" for i in range(begin, end))
