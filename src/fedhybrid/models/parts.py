"""Pieces that several convolutional networks share."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.registry import lookup

__all__ = ["conv3x3", "make_norm", "require_image", "scaled"]

_MAX_GROUPS = 8


def scaled(channels: int, width: float, *, divisor: int = 1) -> int:
    """`channels * width`, rounded to a multiple of `divisor`, at least `divisor`, and never below 90 % of the product.

    Source: the published code of MobileNet (`_make_divisible`).

    Raises:
        ConfigError: `width` is no positive finite number.
    """
    if not (math.isfinite(width) and width > 0):
        raise ConfigError(f"model option width must be positive and finite, got {width}")
    wanted = channels * width
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * wanted else rounded + divisor


def _group_norm(channels: int) -> nn.Module:
    # At least two channels a group: with one, a 1 x 1 map would be normalised to zero.
    groups = max(g for g in range(1, _MAX_GROUPS + 1) if channels % g == 0 and (g == 1 or channels >= 2 * g))
    return nn.GroupNorm(groups, channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": _group_norm,
    "none": lambda channels: nn.Identity(),
}


def make_norm(kind: str, channels: int) -> nn.Module:
    """The normalisation layer called `kind`: "batch", "group" (at most eight groups) or "none".

    Raises:
        ConfigError: No such kind.
    """
    return lookup("model option norm", _NORMS, kind)(channels)


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size at stride 1; without bias, as a normalisation follows."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def require_image(model: str, input_shape: tuple[int, int, int], *, least_side: int) -> int:
    """The image's channels, if its sides are long enough for the model's reductions.

    Raises:
        ConfigError: They are not.
    """
    channels, height, width = input_shape
    if channels < 1 or min(height, width) < least_side:
        raise ConfigError(
            f"model {model!r} needs at least 1x{least_side}x{least_side} inputs, got {channels}x{height}x{width}"
        )
    return channels
