"""Images and labels as the rest of the package sees them: bytes at rest, normalised floats one batch at a time."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fedhybrid.records import IntArray

__all__ = ["Dataset", "Split", "make_split", "pixel_statistics"]

_CHUNK_IMAGES = 1024  # bounds the float64 scratch memory of the statistics to tens of MiB


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Training or test half of a data set.

    Attributes:
        images: Pixels 0 to 255; one byte each, so that 50,000 CIFAR images take 147 MiB and not 586.
        labels: Class of each image.
        mean: Mean of each channel of the *training* half, on the scale 0 to 1.
        std: Standard deviation of each channel of the training half, on the same scale.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batch(self, indices: Int64[Tensor, " b"] | slice) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """The chosen samples: contiguous float32 images of mean 0 and deviation 1 per channel, and their labels."""
        x = self.images[indices].to(torch.float32)
        scale = torch.tensor([1 / (255 * std) for std in self.std]).view(1, -1, 1, 1)
        shift = torch.tensor([mean / std for mean, std in zip(self.mean, self.std, strict=True)]).view(1, -1, 1, 1)
        return x.mul_(scale).sub_(shift).contiguous(), self.labels[indices].clone()

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set ready to train on. `natural_ids` says whose sample each training sample is (None: nobody's).

    `name` is what a report must call the data; it differs from the table's name where a copy is not the original.
    """

    name: str
    train: Split
    test: Split
    classes: int
    natural_ids: IntArray | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def pixel_statistics(images: UInt8[Tensor, "n c h w"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the scale 0 to 1.

    Sums of integers in float64 are exact here, so the result depends on no order and no thread count. A channel
    without any spread gets deviation 1, so that dividing by it is harmless.
    """
    channels = images.shape[1]
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(images), _CHUNK_IMAGES):
        x = images[start : start + _CHUNK_IMAGES].to(torch.float64)
        total += x.sum(dim=(0, 2, 3))
        squares += x.square().sum(dim=(0, 2, 3))
    count = images.numel() / channels
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return tuple((mean / 255).tolist()), tuple(s / 255 if s > 0 else 1.0 for s in std.tolist())


def make_split(
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
) -> Split:
    """A split with the training half's `pixel_statistics`."""
    mean, std = statistics
    return Split(images=images, labels=labels, mean=mean, std=std)
