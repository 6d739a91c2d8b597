"""How much each lossy pack alone changes the gradient: one real step each, on the example batch.

Errors of several packs add up in squares while they are small, so these figures are what plans budget with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedhybrid.executor.bound import BoundModel, put_back
from fedhybrid.executor.running import Runner
from fedhybrid.graph import batch_tensors
from fedhybrid.planner import Problem

__all__ = ["gradient_errors"]

# Packs of one storage in 8 and 4 bits round to steps of 1/255 and 1/15 of the same range.
_STEP_RATIO = 255 / 15


def gradient_errors(
    problem: Problem, bound: BoundModel, example: Any, runner_of: Callable[[Mapping[int, int]], Runner]
) -> dict[tuple[int, str], float]:
    """Relative L2 error of the whole gradient by (storage, codec), for every lossy pack of a problem.

    Measured in 8 bits and scaled to 4; each run keeps to the decisions of the smallest loss-free plan otherwise, so
    that a device that measures stays near the memory that it has. Model and generator are left as they were.

    Args:
        problem: With the packs to look at.
        bound: The model's tensors.
        example: A batch.
        runner_of: Compiles decisions about the problem on top of a small loss-free plan.
    """
    leaves, _ = batch_tensors(example)
    with put_back([*bound.params, *bound.buffers, *leaves]):
        state = torch.get_rng_state()
        exact = _gradients(runner_of({}), bound, example, state)
        size = sum(float(g.double().square().sum()) for g in exact)
        found: dict[tuple[int, str], float] = {}
        for pack in problem.packs:
            if pack.codec == "affine-8":
                planned = _gradients(runner_of({pack.storage: pack.option}), bound, example, state)
                error = _distance(planned, exact) / max(size, 1e-300)
                found[pack.storage, "affine-8"] = error**0.5
                found[pack.storage, "affine-4"] = error**0.5 * _STEP_RATIO
    return found


def _distance(planned: list[Tensor], exact: list[Tensor]) -> float:
    return sum(float((p - e).double().square().sum()) for p, e in zip(planned, exact, strict=True))


def _gradients(runner: Runner, bound: BoundModel, example: Any, state: Tensor) -> list[Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str, grad: Tensor, owned: bool) -> None:
        found[name] = grad.clone()

    buffers = [b.clone() for b in bound.buffers]
    torch.set_rng_state(state)
    runner.run(bound, example, keep)
    for buffer, before in zip(bound.buffers, buffers, strict=True):
        buffer.copy_(before)
    return [found[name] for name in sorted(found)]
