"""Names of torch's internals that capturing a step relies on; those of running one are in `torch_adapter`.

Importing this file takes 35 MB: it belongs to processes that capture, not to devices that only run.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
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

from fedhybrid.errors import FedHybridError

__all__ = [
    "depends_on_values",
    "memory_key",
    "plain_checkpoints",
    "trace",
    "traced_so_far",
    "unfused_recurrence",
]

_OLDEST, _NEWEST = (2, 11), (2, 13)


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
