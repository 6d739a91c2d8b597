"""Plain and residual convolutional networks, dense connections, U-Net, ConvNeXt: real structure, few channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import CLASSES, Case, images, seeded

__all__ = ["batch_norm", "convnext", "densenet", "group_norm", "mlp", "resnet18", "resnet50", "unet", "vgg11"]

Norm = Callable[[int], nn.Module]
batch_norm: Norm = nn.BatchNorm2d


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def mlp(side: int) -> Case:
    sizes = [3 * side * side, 64, 48, 32]

    def make() -> nn.Module:
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], CLASSES))

    return Case(model=seeded(make), loss_fn=F.cross_entropy, batch=images(side))


def vgg11(side: int) -> Case:
    """Eight convolutions, five max-pools, three linear layers with dropout."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        before = 3
        for width in (8, 0, 12, 0, 16, 16, 0, 24, 24, 0, 24, 24, 0):
            if width:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
            else:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        head = [nn.Linear(24, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, 48), nn.ReLU(True), nn.Dropout()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head, nn.Linear(48, CLASSES))

    return Case(model=seeded(make), loss_fn=F.cross_entropy, batch=images(side))


class Basic(nn.Module):
    grows = 1

    def __init__(self, before: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            norm(width),
        )
        self.skip = _projection(before, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.body(x) + self.skip(x))


class Bottleneck(nn.Module):
    grows = 4

    def __init__(self, before: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        after = width * self.grows
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, after, 1, bias=False),
            norm(after),
        )
        self.skip = _projection(before, after, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += self.skip(x)
        return F.relu_(out)


def _projection(before: int, after: int, stride: int, norm: Norm) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))


def _resnet(block: type[Basic] | type[Bottleneck], depths: tuple[int, ...], norm: Norm, *, pooled: bool) -> nn.Module:
    before = 8
    stem: list[nn.Module] = [nn.Conv2d(3, before, 3, 1, 1, bias=False), norm(before), nn.ReLU(inplace=True)]
    if pooled:  # the stem for large images
        stem = [nn.Conv2d(3, before, 7, 2, 3, bias=False), norm(before), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    blocks: list[nn.Module] = []
    for stage, depth in enumerate(depths):
        for index in range(depth):
            width = 8 * (stage + 1) if block is Basic else 4 * (stage + 1)
            blocks.append(block(before, width, 2 if stage and not index else 1, norm))
            before = width * block.grows
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


def resnet18(side: int, *, norm: Norm) -> Case:
    model = seeded(lambda: _resnet(Basic, (2, 2, 2, 2), norm, pooled=False))
    return Case(model=model, loss_fn=F.cross_entropy, batch=images(side))


def resnet50(side: int, *, norm: Norm) -> Case:
    """With the seven by seven stem and its max-pool; the last maps have one pixel."""
    model = seeded(lambda: _resnet(Bottleneck, (3, 4, 6, 3), norm, pooled=True))
    smallest = 2 if norm is batch_norm else 1
    return Case(model=model, loss_fn=F.cross_entropy, batch=images(side), smallest_batch=smallest)


class DenseLayer(nn.Module):
    """Sees all feature maps before it; its own are appended."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(
            nn.BatchNorm2d(before), nn.ReLU(True), nn.Conv2d(before, 4 * growth, 1, bias=False)
        )
        self.grow = nn.Sequential(
            nn.BatchNorm2d(4 * growth), nn.ReLU(True), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        return F.dropout(self.grow(self.squeeze(torch.cat(maps, 1))), 0.1, self.training)


class DenseNet(nn.Module):
    def __init__(self, depths: tuple[int, ...] = (3, 4, 3), growth: int = 6) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for depth in depths:
            self.blocks.append(nn.ModuleList(DenseLayer(channels + i * growth, growth) for i in range(depth)))
            channels += depth * growth
            halve = [nn.BatchNorm2d(channels), nn.ReLU(True), nn.Conv2d(channels, channels // 2, 1), nn.AvgPool2d(2)]
            self.transitions.append(nn.Sequential(*halve))
            channels //= 2
        self.out = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            assert isinstance(block, nn.ModuleList)
            maps = [h]
            for layer in block:
                maps.append(layer(maps))
            h = transition(torch.cat(maps, 1))
        scores: Tensor = self.out(h.mean((2, 3)))
        return scores


def densenet(side: int) -> Case:
    return Case(model=seeded(DenseNet), loss_fn=F.cross_entropy, batch=images(side))


def _double(before: int, after: int) -> nn.Module:
    twice = [(before, after), (after, after)]
    layers = [(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.LeakyReLU(0.1, inplace=True)) for a, b in twice]
    return nn.Sequential(*(layer for group in layers for layer in group))


class UNet(nn.Module):
    """Three scales; max-pool down, one transposed convolution and one bilinear step up, skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _double(3, 8), _double(8, 12), _double(12, 16)
        self.up2, self.join2 = nn.ConvTranspose2d(16, 12, 2, stride=2), _double(24, 12)
        self.up1, self.join1 = nn.Conv2d(12, 8, 1), _double(16, 8)
        self.out = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        h = self.bottom(F.max_pool2d(b, 2))
        h = self.join2(torch.cat([self.up2(h), b], 1))
        h = F.interpolate(self.up1(h), scale_factor=2, mode="bilinear", align_corners=False)
        scores: Tensor = self.out(self.join1(torch.cat([h, a], 1)))
        return scores


def unet(side: int) -> Case:
    def batch(size: int, seed: int) -> tuple[Tensor, Tensor]:
        x, _ = images(side)(size, seed)
        generator = torch.Generator().manual_seed(seed)
        return x, torch.randint(0, CLASSES, (size, side, side), generator=generator)

    return Case(model=seeded(UNet), loss_fn=F.cross_entropy, batch=batch)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise seven by seven, channel-last MLP, layer scale, stochastic depth per sample."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale, self.drop = nn.Parameter(torch.full((width,), 0.1)), drop

    def forward(self, x: Tensor) -> Tensor:
        h = (self.mlp(self.mix(x).permute(0, 2, 3, 1)) * self.scale).permute(0, 3, 1, 2)
        if self.training and self.drop:
            keep = 1 - self.drop
            h = h * (h.new_empty(h.shape[0], 1, 1, 1).bernoulli_(keep) / keep)
        return x + h


def convnext(side: int) -> Case:
    def make() -> nn.Module:
        stage = partial(ConvNeXtBlock, drop=0.2)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 2, 2), ChannelNorm(8), stage(8), stage(8)),
            *(ChannelNorm(8), nn.Conv2d(8, 16, 2, 2), stage(16), stage(16), stage(16)),
            *(ChannelNorm(16), nn.Conv2d(16, 24, 2, 2), stage(24)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(24), nn.Linear(24, CLASSES)),
        )

    return Case(model=seeded(make), loss_fn=F.cross_entropy, batch=images(side))
