"""Samples and labels as the rest of the package sees them: small at rest, a model's input one batch at a time."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fedhybrid.records import IntArray

__all__ = ["Dataset", "ImageSplit", "SignalSplit", "Split", "TextSplit"]

Indices = Int64[Tensor, " b"] | slice


@runtime_checkable
class Split(Protocol):
    """Training or test half of a data set, whatever its samples are."""

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """Class of each sample."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as a model gets it, without the batch."""
        ...

    def batch(self, indices: Indices) -> tuple[Tensor, Int64[Tensor, " b"]]:
        """The chosen samples, contiguous, and their labels; neither shares memory with the data."""
        ...

    def __len__(self) -> int:
        """How many samples."""
        ...


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSplit:
    """Images of one byte a pixel: 50,000 of CIFAR take 147 MiB and not 586, and can stay in their file.

    Attributes:
        images: Pixels 0 to 255; may be mapped from a file.
        labels: Class of each image.
        mean: Mean of each channel of the *training* half, on the scale 0 to 1.
        std: Standard deviation of each channel of the training half, on the same scale.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self.images.shape[1:])

    @cached_property
    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        return _scale_and_shift(self.mean, self.std, largest=255, dimensions=self.images.dim())

    def batch(self, indices: Indices) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """The chosen images as float32 of mean 0 and deviation 1 per channel, and their labels."""
        scale, shift = self._scale_and_shift
        x = _rows(self.images, indices).to(torch.float32).mul_(scale).sub_(shift)
        return x, _copied_rows(self.labels, indices)

    def __len__(self) -> int:
        return self.labels.shape[0]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SignalSplit:
    """Measured values: signals of several channels over time, or plain tables (every column is then a channel).

    Attributes:
        signals: Finite values, in any unit.
        labels: Class of each sample.
        mean: Mean of each channel of the *training* half.
        std: Standard deviation of each channel of the training half.
    """

    signals: Float[Tensor, "n c *time"]
    labels: Int64[Tensor, " n"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, then moments where there are any."""
        return tuple(self.signals.shape[1:])

    @cached_property
    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        return _scale_and_shift(self.mean, self.std, largest=1, dimensions=self.signals.dim())

    def batch(self, indices: Indices) -> tuple[Float[Tensor, "b c *time"], Int64[Tensor, " b"]]:
        """The chosen signals as float32 of mean 0 and deviation 1 per channel, and their labels."""
        scale, shift = self._scale_and_shift
        return torch.mul(_rows(self.signals, indices), scale).sub_(shift), _copied_rows(self.labels, indices)

    def __len__(self) -> int:
        return self.labels.shape[0]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class TextSplit:
    """Windows of a text, whose tokens are characters or words.

    Windows overlap, so only the text is stored and a batch cuts its windows out of it: half a million windows of 80
    characters take 8 MiB and not 305.

    Attributes:
        text: Number of each token, of any whole type; both halves share it.
        starts: Where each window begins; it must end inside the text.
        labels: Class of each window, such as the token that follows it.
        window: Tokens that a model sees at once.
    """

    text: Tensor
    starts: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    window: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The window's length."""
        return (self.window,)

    @cached_property
    def _windows(self) -> Tensor:
        """Every window of the text, as a view of it."""
        return self.text.unfold(0, self.window, 1)

    def batch(self, indices: Indices) -> tuple[Int64[Tensor, "b window"], Int64[Tensor, " b"]]:
        """The chosen windows and their labels."""
        return self._windows[_rows(self.starts, indices)].to(torch.int64), _copied_rows(self.labels, indices)

    def __len__(self) -> int:
        return self.starts.shape[0]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set ready to train on.

    Attributes:
        name: What a report must call the data; it differs from the table's name where a copy is not the original.
        train: What the clients hold.
        test: What models are judged by.
        classes: How many there are.
        tokens: How many different ones a text has, numbered from 0; None where samples are no text.
        natural_ids: Whose sample each training sample is; None where the data do not say.
        test_ids: Whose sample each test sample is, in the same numbers; None where the data do not say.
    """

    name: str
    train: Split
    test: Split
    classes: int
    tokens: int | None = None
    natural_ids: IntArray | None = None
    test_ids: IntArray | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (channels, height, width), (channels, moments), (columns,) or (tokens,)."""
        return self.train.input_shape


def _rows(data: Tensor, indices: Indices) -> Tensor:
    # index_select costs a third of the general indexing of `[]` for the few rows of a batch.
    return data[indices] if isinstance(indices, slice) else data.index_select(0, indices)


def _copied_rows(data: Tensor, indices: Indices) -> Tensor:
    return data[indices].clone() if isinstance(indices, slice) else data.index_select(0, indices)


def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], *, largest: int, dimensions: int
) -> tuple[Tensor, Tensor]:
    """What a sample of values up to `largest` is multiplied with, and what is then taken off it."""
    shape = (1, -1) + (1,) * (dimensions - 2)
    scale = torch.tensor([1 / (largest * s) for s in std]).view(shape)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)]).view(shape)
    return scale, shift
