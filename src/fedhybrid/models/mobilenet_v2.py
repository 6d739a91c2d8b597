"""MobileNetV2 for 32 x 32 images.

Source: M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", CVPR 2018, https://arxiv.org/abs/1801.04381, table 2.
Differs: stride 1 in the stem and in the stage of 24 channels (usual for CIFAR: 224 x 224 images lose those halvings
first); no dropout unless asked.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.parts import make_norm, require_image, scaled

__all__ = ["MobileNetV2"]

# expansion, channels, repeats, stride of the first repeat
_SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_CHANNELS, _LAST_CHANNELS = 32, 1280


def _conv_norm(
    channels_in: int, channels_out: int, norm: str, *, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, make_norm(norm, channels_out)]


class _InvertedResidual(nn.Module):
    """Expand (1 x 1), filter each channel (3 x 3 depthwise), project (1 x 1, no activation)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int, norm: str) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_conv_norm(channels_in, hidden, norm), nn.ReLU6()]
        layers += [*_conv_norm(hidden, hidden, norm, kernel=3, stride=stride, groups=hidden), nn.ReLU6()]
        layers += _conv_norm(hidden, channels_out, norm)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 for small images; maps (b, c, h, w) to (b, classes).

    `width` scales all channels but the last stage's, which never shrinks.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        width: float = 1.0,
        norm: str = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigError(f"model option dropout must be in [0, 1), got {dropout}")
        image_channels, _, _ = require_image("mobilenet_v2", input_shape, least_side=8)
        before = scaled(_STEM_CHANNELS, width, divisor=8)
        layers: list[nn.Module] = [*_conv_norm(image_channels, before, norm, kernel=3), nn.ReLU6()]
        for expansion, channels, repeats, first_stride in _SETTINGS:
            after = scaled(channels, width, divisor=8)
            for repeat in range(repeats):
                layers.append(_InvertedResidual(before, after, first_stride if repeat == 0 else 1, expansion, norm))
                before = after
        last = scaled(_LAST_CHANNELS, max(1.0, width), divisor=8)
        layers += [*_conv_norm(before, last, norm), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return in_order(self.ordered(), x)

    def ordered(self) -> list[Part]:
        """The stem, each inverted residual, the last convolution, the head with the mean before it."""
        last = len(self.features) - 3
        units = [(f"features.{i}", (f"features.{i}",), self.features[i]) for i in range(3, last)]
        stem = ("stem", tuple(f"features.{i}" for i in range(3)), self.features[:3])
        widest = ("widest", tuple(f"features.{i}" for i in range(last, last + 3)), self.features[last:])
        return [
            *(Part(name=name, holds=holds, run=run) for name, holds, run in (stem, *units, widest)),
            Part(name="head", holds=("dropout", "head"), run=lambda x: self.head(self.dropout(x.mean(dim=(2, 3))))),
        ]
