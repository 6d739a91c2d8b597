"""Networks for phones: inverted residuals, squeeze-excite with hard activations, channel shuffle."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import CLASSES, Case, images, seeded

__all__ = ["mobilenet_v2", "mobilenet_v3", "shufflenet_v2"]

Activation = Callable[[], nn.Module]


def _conv(
    before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, *, activation: Activation | None = None
) -> nn.Sequential:
    layers = [nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)), inplace=True)
        return x * F.hardsigmoid(self.excite(gate), inplace=True)


class Inverted(nn.Module):
    """Expand, depthwise, project; residual where the shape stays."""

    def __init__(
        self, before: int, after: int, expand: int, stride: int, activation: Activation, *, excite: bool = False
    ) -> None:
        super().__init__()
        wide = before * expand
        body: list[nn.Module] = [] if expand == 1 else [_conv(before, wide, 1, activation=activation)]
        body.append(_conv(wide, wide, 5 if excite else 3, stride, wide, activation=activation))
        body += [SqueezeExcite(wide)] if excite else []
        self.body = nn.Sequential(*body, _conv(wide, after, 1))
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


def _relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


def _hardswish() -> nn.Module:
    return nn.Hardswish(inplace=True)


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def mobilenet_v2(side: int) -> Case:
    def make() -> nn.Module:
        plan = [(8, 1, 1), (8, 6, 1), (8, 6, 1), (12, 6, 2), (12, 6, 1), (16, 6, 2), (16, 6, 1), (20, 6, 1)]
        layers: list[nn.Module] = [_conv(3, 8, 3, 2, activation=_relu6)]
        before = 8
        for after, expand, stride in plan:
            layers.append(Inverted(before, after, expand, stride, _relu6))
            before = after
        layers.append(_conv(before, 64, 1, activation=_relu6))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, CLASSES))

    return Case(model=seeded(make), loss_fn=F.cross_entropy, batch=images(side))


def mobilenet_v3(side: int) -> Case:
    def make() -> nn.Module:
        layers: list[nn.Module] = [_conv(3, 8, 3, 2, activation=_hardswish)]
        before = 8
        for after, expand, stride, excite, act in (
            (8, 1, 1, True, _relu),
            (12, 4, 2, False, _relu),
            (12, 4, 1, False, _relu),
            (16, 4, 2, True, _hardswish),
            (16, 6, 1, True, _hardswish),
            (16, 6, 1, True, _hardswish),
        ):
            layers.append(Inverted(before, after, expand, stride, act, excite=excite))
            before = after
        layers.append(_conv(before, 64, 1, activation=_hardswish))
        head = [nn.Linear(64, 48), _hardswish(), nn.Dropout(0.2, inplace=True), nn.Linear(48, CLASSES)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)

    return Case(model=seeded(make), loss_fn=F.cross_entropy, batch=images(side))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are convolved, then both are interleaved; with stride both are convolved."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        half, self.stride = after // 2, stride
        if stride > 1:
            self.short = nn.Sequential(
                _conv(before, before, 3, stride, before), _conv(before, half, 1, activation=_relu)
            )
        inner = half if stride == 1 else before
        self.long = nn.Sequential(
            _conv(inner, half, 1, activation=_relu),
            _conv(half, half, 3, stride, half),
            _conv(half, half, 1, activation=_relu),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            passed, changed = x.chunk(2, dim=1)
            both = torch.cat([passed, self.long(changed)], 1)
        else:
            both = torch.cat([self.short(x), self.long(x)], 1)
        size, channels, height, width = both.shape
        return both.view(size, 2, channels // 2, height, width).transpose(1, 2).contiguous().view_as(both)


def shufflenet_v2(side: int) -> Case:
    def make() -> nn.Module:
        units = [ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 16, 1)]
        units += [ShuffleUnit(16, 24, 2), ShuffleUnit(24, 24, 1)]
        stem = _conv(3, 8, 3, 2, activation=_relu)
        return nn.Sequential(
            stem, nn.MaxPool2d(3, 2, 1), *units, _conv(24, 48, 1, activation=_relu), Mean(), nn.Linear(48, CLASSES)
        )

    return Case(model=seeded(make), loss_fn=F.cross_entropy, batch=images(side), smallest_batch=2)


class Mean(nn.Module):
    """Global average of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean([2, 3])
