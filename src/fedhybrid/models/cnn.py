"""A small convolutional network: two convolutions with max-pooling, then one linear layer.

Follows the shape of the CNN in H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, section 3. Differs: 3 x 3 kernels, no hidden linear layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.parts import make_norm, require_image, scaled

__all__ = ["Cnn"]


class Cnn(nn.Module):
    """Two convolutions with max-pooling and a linear layer; maps (b, c, h, w) to (b, classes), h and w at least 4."""

    def __init__(self, *, input_shape: tuple[int, ...], classes: int, width: float = 1.0, norm: str = "none") -> None:
        super().__init__()
        channels, image_height, image_width = require_image("cnn", input_shape, least_side=4)
        first, second = scaled(32, width), scaled(64, width)
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1),
            make_norm(norm, first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            make_norm(norm, second),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(second * (image_height // 4) * (image_width // 4), classes)

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
