"""A network of integers as data: what each operation reads, its geometry, its place in the tables of scales.

Operations are numbered in the order in which they run; 0 is the input. Nothing here holds tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "Add",
    "Conv",
    "Flatten",
    "Graph",
    "Input",
    "LayerUpdate",
    "MaxPool",
    "Mean",
    "Operation",
    "Pad",
    "Subsample",
]

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class _Node:
    """What all operations have.

    Attributes:
        sources: Numbers of the operations that it reads.
        shape: Of one sample's output.
        site: Its output's place in the tables of scales and zero points.
    """

    sources: tuple[int, ...]
    shape: tuple[int, ...] = ()
    site: int = 0

    @property
    def elements(self) -> int:
        """Of one sample's output."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Input(_Node):
    """The sample, rounded to the input's scale."""


@dataclass(frozen=True, kw_only=True)
class Conv(_Node):
    """A convolution with bias and, by the range of its output, a ReLU or ReLU6; also a linear layer on flat input.

    Attributes:
        number: Among the convolutions, from the input on.
        weight_shape: Output channels, input channels of a group, kernel; (out, in, 1, 1) for a linear layer.
        depthwise: Each channel has a filter of its own.
        top: Of the activation: None without, infinity for ReLU, 6 for ReLU6.
    """

    number: int
    weight_shape: tuple[int, int, int, int]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    depthwise: bool = False
    top: float | None = None

    @property
    def channels_in(self) -> int:
        """Channels that it reads, which are those that a sparse update chooses from."""
        return self.weight_shape[0] if self.depthwise else self.weight_shape[1]

    @property
    def channels_out(self) -> int:
        """Channels that it makes."""
        return self.weight_shape[0]

    def part_shape(self, channels: int) -> tuple[int, int, int, int]:
        """Of the weights that read so many of the input's channels."""
        out, of_group, height, width = self.weight_shape
        return (channels, of_group, height, width) if self.depthwise else (out, channels, height, width)

    def part_elements(self, channels: int) -> int:
        """Weights that read so many of the input's channels."""
        return math.prod(self.part_shape(channels))


@dataclass(frozen=True, kw_only=True)
class Add(_Node):
    """The sum of two tensors, with the activation that follows it (see `Conv.top`)."""

    top: float | None = None


@dataclass(frozen=True, kw_only=True)
class MaxPool(_Node):
    """The largest of each window; the first of equal ones passes the gradient on."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Mean(_Node):
    """The rounded mean over all pixels of a channel."""


@dataclass(frozen=True, kw_only=True)
class Subsample(_Node):
    """Every so-many-th row and column."""

    step: Pair


@dataclass(frozen=True, kw_only=True)
class Pad(_Node):
    """Zero channels before and after."""

    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Flatten(_Node):
    """All dimensions of a sample as one."""


Operation = Input | Conv | Add | MaxPool | Mean | Subsample | Pad | Flatten


@dataclass(frozen=True, kw_only=True)
class LayerUpdate:
    """What of one convolution is trained.

    Attributes:
        bias: Its bias; a layer whose weights are trained trains it too.
        channels: Input channels whose weights are trained.
    """

    bias: bool = False
    channels: int = 0


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The operations in order; the output of the last one is what the classifier reads.

    Attributes:
        operations: See above.
        sites: Places in the tables of scales.
        classes: Outputs of the classifier.
    """

    operations: tuple[Operation, ...]
    sites: int
    classes: int

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The convolutions in order."""
        return tuple(op for op in self.operations if isinstance(op, Conv))

    @property
    def features(self) -> int:
        """Numbers that the classifier reads."""
        return self.operations[-1].elements

    def everything(self) -> tuple[LayerUpdate, ...]:
        """Every weight and every bias is trained."""
        return tuple(LayerUpdate(bias=True, channels=conv.channels_in) for conv in self.convs)

    def reached(self, updates: Sequence[LayerUpdate]) -> tuple[bool, ...]:
        """For each operation whether a gradient of its output is needed: it, or one that it reads from, is trained."""
        found: list[bool] = []
        for op in self.operations:
            own = isinstance(op, Conv) and updates[op.number].bias
            found.append(own or any(found[source] for source in op.sources))
        return tuple(found)
