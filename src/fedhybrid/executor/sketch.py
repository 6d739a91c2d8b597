"""A gradient's sketch: enough to say how far two gradients are apart, in a few KiB instead of a copy of a gradient.

With random signs, elements are summed into a thousand buckets; the squared length of the difference of two such
sketches estimates that of the gradients themselves without bias (the "count sketch" of M. Charikar, K. Chen and
M. Farach-Colton, 2002).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from fedhybrid.executor.bound import BoundModel, put_back
from fedhybrid.executor.running import Runner
from fedhybrid.graph import batch_tensors
from fedhybrid.seeds import derive_seed

__all__ = ["GradientSketch", "sketch_of"]

_BUCKETS = 1024  # the estimate's relative standard deviation is sqrt(2 / buckets), 4.4 %, of the squared distance
_ROWS = 8  # rows of buckets that are worked on at once


@final
class GradientSketch:
    """Sums of a gradient's elements with random signs, parameter by parameter."""

    def __init__(self) -> None:
        self.sums = torch.zeros(_BUCKETS, dtype=torch.float64)

    def add(self, name: str, grad: Tensor) -> None:
        """Takes in one parameter's gradient, any shape; needs about 200 KiB of scratch."""
        generator = torch.Generator().manual_seed(derive_seed(0, purpose=f"signs of {name}"))
        flat = grad.detach().reshape(-1)
        for begin in range(0, flat.numel(), _ROWS * _BUCKETS):
            part = flat[begin : begin + _ROWS * _BUCKETS].double()
            signs = torch.randint(0, 2, part.shape, generator=generator, dtype=torch.int8)
            part.mul_(signs.mul_(2).sub_(1))
            whole = part.numel() // _BUCKETS * _BUCKETS
            self.sums += part[:whole].view(-1, _BUCKETS).sum(0)
            self.sums[: part.numel() - whole] += part[whole:]

    def take(self, name: str, grad: Tensor, owned: bool) -> None:
        """As `add`, for a runner."""
        self.add(name, grad)

    def error_from(self, exact: GradientSketch) -> float:
        """Estimated L2 distance from another gradient, relative to that one's length."""
        return self.distance(exact) / max(exact.length(), 1e-300)

    def distance(self, other: GradientSketch) -> float:
        """Estimated L2 distance of the gradients."""
        return float((self.sums - other.sums).square().sum().sqrt())

    def length(self) -> float:
        """Estimated L2 length of the gradient."""
        return float(self.sums.square().sum().sqrt())


def sketch_of(runner: Runner, bound: BoundModel, batch: Any) -> GradientSketch:
    """Of the gradient that a runner gives on a batch; model, batch and generator are left as they were."""
    sketch = GradientSketch()
    leaves, _ = batch_tensors(batch)
    with put_back([*bound.buffers, *leaves]), torch.random.fork_rng(devices=[]):
        runner.run(bound, batch, sketch.take)
    return sketch
