"""`torch.compile` with PyTorch's own memory budget, run as ATen calls without code generation.

The budget is a ratio of the saved bytes, not a peak. The backend `aot_eager` has what such a comparison needs: the
min-cut partitioner that the budget belongs to, boxed calls (called otherwise, a graph keeps all its inputs alive), and
`keep_inference_input_mutations` (without it, recomputing batch norm fails: "modified by an inplace operation").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compiled_step"]


def compiled_step(
    make_step: Callable[[Callable[[Tensor], Tensor]], Callable[[], Tensor]], model: nn.Module, ratio: float
) -> Callable[[], Tensor]:
    """The step over the compiled model; compiled at its first run.

    Args:
        make_step: Makes a step of a function from inputs to outputs.
        model: Compiled in place of being called.
        ratio: `torch._functorch.config.activation_memory_budget`: 1 keeps all, 0 recomputes all that it can.
    """
    from torch._functorch import config  # noqa: PLC0415 - slow to import, and often not used

    aot_eager = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph: Any, inputs: Any) -> Any:
        """A function of its own for each ratio: models of one class share compiled code where their backend is one."""
        return aot_eager(graph, inputs)

    step = make_step(torch.compile(model, backend=backend))

    def run() -> Tensor:
        with config.patch(activation_memory_budget=ratio):
            return step()

    return run
