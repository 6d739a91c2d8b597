"""Mean and deviation of each channel of a training half, by which all batches are normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from fedhybrid.data.split import ImageSplit, SignalSplit

__all__ = ["Statistics", "image_halves", "pixel_statistics", "signal_halves", "signal_statistics"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel
Half = tuple[Tensor, Tensor]  # samples and their labels

_CHUNK_SAMPLES = 1024  # bounds the float64 scratch memory of the statistics to tens of MiB


def pixel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation of each channel of images (n, c, h, w) of bytes, on the scale 0 to 1.

    Sums of integers in float64 are exact here, so the result depends on no order and no thread count. A channel
    without any spread gets deviation 1, so that dividing by it is harmless.
    """
    channels = images.shape[1]
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(images), _CHUNK_SAMPLES):
        x = images[start : start + _CHUNK_SAMPLES].to(torch.float64)
        total += x.sum(dim=(0, 2, 3))
        squares += x.square().sum(dim=(0, 2, 3))
    count = images.numel() / channels
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return tuple((mean / 255).tolist()), tuple(s / 255 if s > 0 else 1.0 for s in std.tolist())


def signal_statistics(signals: Tensor) -> Statistics:
    """Mean and standard deviation of each channel of signals (n, c, ...), a channel at a time in float64.

    A channel without any spread gets deviation 1.
    """
    columns = [signals[:, channel].to(torch.float64).numpy() for channel in range(signals.shape[1])]
    # numpy adds in one order whatever the number of threads; torch does not promise that.
    deviations = [float(column.std()) for column in columns]
    return tuple(float(column.mean()) for column in columns), tuple(s if s > 0 else 1.0 for s in deviations)


def image_halves(train: Half, test: Half) -> tuple[ImageSplit, ImageSplit]:
    """Training and test half of images, both normalised by the training half."""
    mean, std = pixel_statistics(train[0])
    first, second = (ImageSplit(images=images, labels=labels, mean=mean, std=std) for images, labels in (train, test))
    return first, second


def signal_halves(train: Half, test: Half) -> tuple[SignalSplit, SignalSplit]:
    """Training and test half of signals, both normalised by the training half."""
    mean, std = signal_statistics(train[0])
    first, second = (SignalSplit(signals=x, labels=labels, mean=mean, std=std) for x, labels in (train, test))
    return first, second
