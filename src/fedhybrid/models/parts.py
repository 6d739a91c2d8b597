"""Pieces that several networks share: shapes, widths, normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.registry import lookup

__all__ = ["conv3x3", "make_norm", "require_image", "require_shape", "scaled"]

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


_BATCH_NORMS: dict[int, Callable[[int], nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def make_norm(kind: str, channels: int, *, dimensions: int = 2) -> nn.Module:
    """The normalisation layer called `kind`: "batch", "group" (at most eight groups) or "none".

    Args:
        kind: See above.
        channels: Of what it normalises.
        dimensions: Beside batch and channels: 2 for images, 1 for signals.

    Raises:
        ConfigError: No such kind.
    """
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": _BATCH_NORMS[dimensions],
        "group": _group_norm,
        "none": lambda channels: nn.Identity(),
    }
    return lookup("model option norm", kinds, kind)(channels)


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size at stride 1; without bias, as a normalisation follows."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def require_shape(model: str, input_shape: tuple[int, ...], **least: int) -> tuple[int, ...]:
    """The shape of one sample, if it has these dimensions and each is long enough.

    Args:
        model: The model's name, for the message.
        input_shape: What the data have.
        least: The dimensions by their names, in order, and the smallest length of each.

    Raises:
        ConfigError: They are not.

    >>> require_shape("cnn1d", (3, 32, 32), channels=1, moments=4)
    Traceback (most recent call last):
    fedhybrid.errors.ConfigError: model 'cnn1d' needs inputs of channels x moments, at least 1x4; the data's are 3x32x32
    """
    if len(input_shape) != len(least) or any(map(int.__lt__, input_shape, least.values())):
        raise ConfigError(
            f"model {model!r} needs inputs of {' x '.join(least)}, at least {'x'.join(map(str, least.values()))}; "
            f"the data's are {'x'.join(map(str, input_shape)) or 'single numbers'}"
        )
    return input_shape


def require_image(model: str, input_shape: tuple[int, ...], *, least_side: int) -> tuple[int, int, int]:
    """Channels, height and width of an image whose sides are long enough for the model's reductions.

    Raises:
        ConfigError: It is no image, or they are not.
    """
    channels, height, width = require_shape(model, input_shape, channels=1, height=least_side, width=least_side)
    return channels, height, width
