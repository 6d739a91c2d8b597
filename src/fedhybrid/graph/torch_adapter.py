"""Names of torch's internals that a running step relies on; those of the capture are in `torch_tracing`.

Nothing else may import one. Supported: torch 2.11 to 2.13. When a new version moves a name, these two files change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fedhybrid.collection import collection_paused
from fedhybrid.errors import FedHybridError

__all__ = [
    "OpOverload",
    "aliases_input",
    "allocator_events",
    "as_computed",
    "is_random",
    "overload",
    "peak_of",
    "written_arguments",
]

# The profiler writes a line to standard error at each start and stop unless told not to.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

# Views whose schema does not say so.
_SILENT_VIEWS = {
    "aten._unsafe_view.default",
    "aten.unsafe_chunk.default",
    "aten.unsafe_split.Tensor",
    "aten.unsafe_split_with_sizes.default",
}

# The schema of these does not say that they write their running statistics (arguments 3 and 4) in training.
_SILENT_WRITERS = {"aten.native_batch_norm.default": (3, 4, 5)}  # two written arguments, then the flag `training`


# Norms of a 16-bit input that any float32 tensor goes into keep their statistics in float32; fake tensors say 16-bit.
_MIXED_NORMS = {"aten.native_batch_norm.default", "aten.native_group_norm.default", "aten.native_layer_norm.default"}


def overload(name: str) -> OpOverload:
    """The operator of a name such as "aten.relu.default"."""
    namespace, packet, overload_name = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload_name)  # type: ignore[no-any-return]


def aliases_input(func: OpOverload) -> bool:
    """Whether the outputs are views of an input that the operator does not write."""
    if str(func) in _SILENT_VIEWS:
        return True
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def written_arguments(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that the operator writes, as they were given."""
    found = [
        args[position] if position < len(args) else kwargs.get(argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if (silent := _SILENT_WRITERS.get(str(func))) is not None:
        mean, var, training = silent
        if args[training]:
            found += [args[mean], args[var]]
    return [argument for argument in found if argument is not None]


def is_random(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the call draws from the generator; attention without dropout does not, although it is tagged so."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[position] if position < len(args) else kwargs.get("dropout_p", argument.default_value)
            return bool(given)
    return True


def as_computed(func: OpOverload, args: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """The fake results of a call with the types that the CPU kernel really gives.

    Args:
        func: The operator.
        args: What it was called with, tensors as fakes.
        results: What the fake tensors say.
    """
    given = [a.dtype for a in args if isinstance(a, Tensor)]
    if str(func) in _MIXED_NORMS and given[0].itemsize == 2 and torch.float32 in given:
        return [results[0], *(r.to(torch.float32) for r in results[1:])]
    return list(results)


def peak_of(events: Iterable[int]) -> int:
    """The largest running sum of allocator events.

    Raises:
        FedHybridError: The sum falls below zero: something born before was freed, so the peak would read too low.
    """
    live = peak = 0
    for nbytes in events:
        live += nbytes
        peak = max(peak, live)
        if live < 0:
            raise FedHybridError(f"{-live} bytes were freed that were not allocated: this peak cannot be measured")
    return peak


@contextmanager
def allocator_events() -> Iterator[list[int]]:
    """Collects the CPU allocator's events of the block: bytes allocated (> 0) or freed (< 0), in order.

    The list is filled when the block ends. Frees of blocks that were born before are among them; callers make sure
    that none happen, or tell by the running sum, which then falls below zero.
    """
    events: list[int] = []
    # No tensor of an old cycle may be freed in between; to collect them first would take longer.
    # torch.profiler is a layer round this one that imports the whole compiler: 70 MB and more than a second.
    with collection_paused(), torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profile:
        yield events
    assert profile.kineto_results is not None
    found = profile.kineto_results.events()
    # Time stamps tie, so the order of the list decides among equals.
    stamped = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(found) if e.name() == "[memory]")
    events.extend(nbytes for _, _, nbytes in stamped)
