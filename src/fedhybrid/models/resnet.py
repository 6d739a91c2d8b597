"""ResNets for small images.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385. `ResNet20` is the paper's own CIFAR network (section 4.2, n = 3, parameter-free
shortcuts: option A). `ResNet18` is the ImageNet network with the stem that is usual for 32 x 32 images: one 3 x 3
convolution of stride 1 and no max-pooling; 11.17 million parameters at 10 classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.models.ordered import Part, in_order
from fedhybrid.models.parts import conv3x3, make_norm, require_image, scaled

__all__ = ["ResNet18", "ResNet20"]


class _PaddedShortcut(nn.Module):
    """Option A: every `stride`-th pixel, new channels zero. Has no parameters."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.channels_in, self.channels_out = channels_in, channels_out

    def forward(self, x: Tensor) -> Tensor:
        before = (self.channels_out - self.channels_in) // 2
        after = self.channels_out - self.channels_in - before
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))

    def resize(self, channels: Callable[[int], int]) -> None:
        """The same between other numbers of channels; see `models/narrowed.py`."""
        self.channels_in, self.channels_out = channels(self.channels_in), channels(self.channels_out)


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (the paper's basic block)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str, *, projection: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm1 = make_norm(norm, channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.norm2 = make_norm(norm, channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            if projection:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), make_norm(norm, channels_out)
                )
            else:
                self.shortcut = _PaddedShortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class _ResNet(nn.Module):
    """Stem, stages of basic blocks (each stage but the first halves the sides), mean over pixels, linear."""

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        channels: tuple[int, ...],
        blocks: int,
        norm: str,
        projection: bool,
    ) -> None:
        super().__init__()
        image_channels, _, _ = require_image("resnet", input_shape, least_side=2 ** (len(channels) - 1))
        self.stem = nn.Sequential(conv3x3(image_channels, channels[0]), make_norm(norm, channels[0]), nn.ReLU())
        stages: list[nn.Module] = []
        before = channels[0]
        for stage, after in enumerate(channels):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(_Block(before, after, stride, norm, projection=projection))
                before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, (b, classes)."""
        return in_order(self.ordered(), x)

    def ordered(self) -> list[Part]:
        """The stem, each residual unit, the head with the mean before it."""
        return [
            Part(name="stem", holds=("stem",), run=self.stem),
            *(Part(name=f"stages.{i}", holds=(f"stages.{i}",), run=unit) for i, unit in enumerate(self.stages)),
            Part(name="head", holds=("head",), run=lambda x: self.head(x.mean(dim=(2, 3)))),
        ]


class ResNet18(_ResNet):
    """ResNet-18 for small images: four stages of two blocks; 64, 128, 256, 512 channels times `width`."""

    def __init__(self, *, input_shape: tuple[int, ...], classes: int, width: float = 1.0, norm: str = "batch") -> None:
        channels = tuple(scaled(c, width) for c in (64, 128, 256, 512))
        super().__init__(
            input_shape=input_shape, classes=classes, channels=channels, blocks=2, norm=norm, projection=True
        )


class ResNet20(_ResNet):
    """ResNet-20 for CIFAR: three stages of three blocks; 16, 32, 64 channels times `width`."""

    def __init__(self, *, input_shape: tuple[int, ...], classes: int, width: float = 1.0, norm: str = "batch") -> None:
        channels = tuple(scaled(c, width) for c in (16, 32, 64))
        super().__init__(
            input_shape=input_shape, classes=classes, channels=channels, blocks=3, norm=norm, projection=False
        )
