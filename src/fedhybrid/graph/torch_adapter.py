"""Every name of torch's internals that the package relies on; nothing else may import one.

Supported: torch 2.11 to 2.13. When a new version moves a name, this is the one file to change.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from fedhybrid.collection import collection_paused
from fedhybrid.errors import FedHybridError

__all__ = [
    "OpOverload",
    "aliases_input",
    "allocator_events",
    "as_computed",
    "depends_on_values",
    "is_random",
    "memory_key",
    "overload",
    "peak_of",
    "plain_checkpoints",
    "trace",
    "traced_so_far",
    "unfused_recurrence",
    "written_arguments",
]

# The profiler writes a line to standard error at each start and stop unless told not to.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

_OLDEST, _NEWEST = (2, 11), (2, 13)

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


def check_version() -> None:
    """Warns once when the installed torch is outside the supported range.

    Raises:
        FedHybridError: torch is older than the oldest supported version.
    """
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < _OLDEST:
        raise FedHybridError(
            f"torch {torch.__version__} is too old; install torch 2.13.0 (2.11 to 2.13 are supported)."
        )
    if (major, minor) > _NEWEST:
        warnings.warn(f"torch {torch.__version__} is newer than the newest tested version (2.13).", stacklevel=2)


class _Lifetimes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when the last tensor over each block of memory goes away while a function is traced.

    Fake tensors are referred to by exactly what refers to real ones in eager PyTorch: Python variables, the locals of
    layers written in C++, and autograd, which lets go of what a node saved when that node has run.

    Attributes:
        held: For each block of memory that an operator gave, the newest node when it went away; None for what outlived
            the function.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[int, Node | None] = {}
        self._watched: list[weakref.ref[Tensor]] = []
        self._over = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        proxy_mode = get_proxy_mode()
        assert proxy_mode is not None, "lifetimes are noted while tracing"
        for result in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(result, Tensor):
                self._watch(result, proxy_mode.tracer.graph)
        return results

    def __exit__(self, *reason: Any) -> None:
        self._over = True
        alive = [tensor for tensor in (watched() for watched in self._watched) if tensor is not None]
        self.held.update({memory_key(tensor): None for tensor in alive})
        super().__exit__(*reason)  # type: ignore[no-untyped-call]

    def _watch(self, tensor: Tensor, graph: Graph) -> None:
        key = memory_key(tensor)

        def gone(_: object) -> None:
            if not self._over:
                self.held[key] = _newest(graph)

        self._watched.append(weakref.ref(tensor, gone))


def memory_key(tensor: Tensor) -> int:
    """The same number for all tensors over one block of memory, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


def trace(function: Callable[..., Any], flat: Sequence[Tensor]) -> tuple[GraphModule, dict[int, Node | None]]:
    """Traces `function(*flat)` into one ATen graph on fake tensors; no real tensor is read or written.

    Returns:
        The graph, whose placeholders are `flat` in order; and for each block of memory that an operator gave (see
        `memory_key`) the newest node when eager PyTorch would have let it go, None for what outlives the function.
    """
    check_version()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # Plain detached fakes: parameters keep requires_grad, and the caller's tensors are never touched.
    fakes = [mode.from_tensor(t.detach()).requires_grad_(t.requires_grad) for t in flat]
    lifetimes = _Lifetimes()

    def watched(*args: Tensor) -> Any:
        with lifetimes:
            return function(*args)

    with mode, plain_checkpoints(), unfused_recurrence(), torch.enable_grad():
        return make_fx(watched)(*fakes), lifetimes.held


def traced_so_far() -> Node | None:
    """Inside a traced function: the last node recorded up to now."""
    proxy_mode = get_proxy_mode()
    if proxy_mode is None:
        return None
    return _newest(proxy_mode.tracer.graph)


def _newest(graph: Graph) -> Node | None:
    return next(iter(reversed(graph.nodes)), None)


def depends_on_values(error: BaseException) -> bool:
    """Whether tracing failed because Python code or a shape depended on the values of tensors."""
    kinds = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
    return isinstance(error, kinds)


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


@contextmanager
def plain_checkpoints() -> Iterator[None]:
    """Lets `torch.utils.checkpoint` run its function once and save everything.

    A captured step decides itself what is made again; a checkpoint's own second run would be captured with a second
    draw of every random mask.
    """

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
            return function(*args)

    def plain(*_: Any, **__: Any) -> Iterator[None]:
        yield

    before = checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator
    checkpoint.CheckpointFunction = Plain  # type: ignore[assignment, misc]
    checkpoint._checkpoint_without_reentrant_generator = plain
    try:
        yield
    finally:
        checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator = before  # type: ignore[misc]


@contextmanager
def unfused_recurrence() -> Iterator[None]:
    """Runs LSTM layers without oneDNN's fused kernel, whose workspace has an unknown size under fake tensors.

    Only these: oneDNN also decides the strides that convolutions give.
    """
    places = [(place, place.lstm) for place in (torch._VF, torch)]

    def without_onednn(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            enabled = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
            try:
                return function(*args, **kwargs)
            finally:
                torch._C._set_mkldnn_enabled(enabled)

        return call

    for place, function in places:
        place.lstm = without_onednn(function)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for place, function in places:
            place.lstm = function  # type: ignore[attr-defined]


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


def is_random(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the call draws from the generator; attention without dropout does not, although it is tagged so."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[position] if position < len(args) else kwargs.get("dropout_p", argument.default_value)
            return bool(given)
    return True


@contextmanager
def allocator_events() -> Iterator[list[int]]:
    """Collects the CPU allocator's events of the block: bytes allocated (> 0) or freed (< 0), in order.

    The list is filled when the block ends. Frees of blocks that were born before are among them; callers make sure
    that none happen, or tell by the running sum, which then falls below zero.
    """
    events: list[int] = []
    # No tensor of an old cycle may be freed in between; to collect them first would take longer.
    with (
        collection_paused(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        yield events
    found = profile.profiler.kineto_results.events()
    # Time stamps tie, so the order of the list decides among equals.
    stamped = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(found) if e.name() == "[memory]")
    events.extend(nbytes for _, _, nbytes in stamped)
