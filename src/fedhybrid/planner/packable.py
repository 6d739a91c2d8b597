"""Which storages may wait for the backward pass in a packed form, and with which codec's options.

Never packed with loss: anything but activations of some size, normalisation statistics, and what a loss saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch

from fedhybrid.codecs import CODECS, Codec
from fedhybrid.graph import Op, Ref, Role, StepGraph, Value
from fedhybrid.planner.problem import Problem

__all__ = ["LOSSY", "MENU", "OFFLOAD", "Packable"]

OFFLOAD = "offload"  # the pseudo-codec of a file: no memory at all

# What the action "encode" may choose from if nobody says otherwise, and everything that loses something.
MENU = ("affine-8", "affine-4", "affine-2")
LOSSY = (*MENU, "bf16", "channel-mix", "division", "mesa", "sparse")
_WITHOUT_CLAMPING = ("bf16", "sparse")  # gates alone are enough for them

# Backward operators that decide by comparison: which argument, and the numbers that it is compared with. (A gate
# belongs to the outside; where an operator counts -3 itself as inside, the gate is the next number below.)
_BELOW_MINUS_3 = -3.0000002384185791
_GATES: dict[str, tuple[int, Callable[[Sequence[object]], tuple[float, float]]]] = {
    "threshold_backward": (1, lambda args: (_number(args, 2, 0.0), math.inf)),
    "hardtanh_backward": (1, lambda args: (_number(args, 2, -1.0), _number(args, 3, 1.0))),
    "leaky_relu_backward": (1, lambda args: (0.0, math.inf)),
    "_prelu_kernel_backward": (1, lambda args: (0.0, math.inf)),
    "rrelu_with_noise_backward": (1, lambda args: (0.0, math.inf)),
    "elu_backward": (5, lambda args: (0.0, math.inf)),
    "softshrink_backward": (1, lambda args: (-_number(args, 2, 0.5), _number(args, 2, 0.5))),
    "hardshrink_backward": (1, lambda args: (-_number(args, 2, 0.5), _number(args, 2, 0.5))),
    "hardswish_backward": (1, lambda args: (_BELOW_MINUS_3, 3.0)),
    "hardsigmoid_backward": (1, lambda args: (-3.0, 3.0)),
}

# Forward operators whose results never lie beyond these numbers.
_CLAMPS: dict[str, Callable[[Sequence[object]], tuple[float, float]]] = {
    "relu": lambda args: (0.0, math.inf),
    "relu_": lambda args: (0.0, math.inf),
    "threshold": lambda args: (_number(args, 1, 0.0), math.inf) if args[1] == args[2] else (-math.inf, math.inf),
    "hardtanh": lambda args: (_number(args, 1, -1.0), _number(args, 2, 1.0)),
    "hardtanh_": lambda args: (_number(args, 1, -1.0), _number(args, 2, 1.0)),
}

# What these read must come back exactly: probabilities and statistics, where a small change is a large one, and numbers
# that the backward pass compares with each other.
_EXACT_READERS = ("log_softmax_backward", "loss", "cross_entropy", "cdist", "norm_backward", "max_pool")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "sgn", "sign", "isclose")
_NORM_INPUTS = ("native_batch_norm_backward", "native_layer_norm_backward", "native_group_norm_backward")

_ATTENTION, _LOGSUMEXP = "scaled_dot_product_flash_attention_for_cpu_backward", 5  # and the position of its statistics

_POOLS = ("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d")

_MOST_GATES = 2
_LEAST_BYTES = 1 << 14  # smaller tensors are not worth a call


def _number(args: Sequence[object], position: int, default: float) -> float:
    given = args[position] if position < len(args) else default
    return float(given) if isinstance(given, (int, float)) else default


def _positive(given: object) -> bool:
    return isinstance(given, (int, float)) and 0 < given < math.inf


def _name(op: Op) -> str:
    return op.target.split(".")[1]


class Packable:
    """What one graph allows; looked at once.

    Attributes:
        whole: The first value of each temporary storage that fills it: what is packed.
    """

    def __init__(self, graph: StepGraph) -> None:
        self._graph = graph
        self.whole: dict[int, Value] = {
            v.storage: v
            for v in graph.values
            if v.base is None and graph.storages[v.storage].role is Role.TEMP and graph.covers_storage(v.index)
        }
        self._odd: set[int] = set()
        self._two_valued: set[int] = set()
        self._limits: dict[int, int] = {}  # of storages of indices: the numbers are below
        self._clamps: dict[int, tuple[float, float]] = {}
        self._exact: set[int] = set()
        self._gates: dict[int, list[tuple[float, float]]] = {}
        self._readers: dict[int, set[str]] = {}
        self._makers: dict[int, str] = {}
        self._heads = 1
        self._operands: dict[int, int] = {}  # of storages that attention reads: how many of its operands they hold
        for position, op in enumerate(graph.ops):
            self._see_writes(op, forward=position < graph.backward_at)
            if position < graph.backward_at:
                self._see_forward(op)
            else:
                self._see_backward(op)
            self._see_exact(op)

    def packs(self, problem: Problem, actions: Sequence[str], codecs: Sequence[str]) -> list[tuple[int, str]]:
        """(storage, codec) of every pack that the actions allow, "encode" choosing among `codecs`."""
        graph = self._graph
        born = {storage for op in problem.ops[: problem.backward_at] for storage in op.births}
        found = []
        for storage in sorted(born & problem.uses.keys() & self.whole.keys()):
            value = self.whole[storage]
            if storage in self._odd or storage in problem.outputs or graph.storages[storage].nbytes < _LEAST_BYTES:
                continue
            if storage in self._two_valued or value.dtype == torch.bool:
                found.append((storage, "bits"))
            elif storage in self._limits:
                found.append((storage, "narrow"))
            elif "encode" in actions and value.dtype.is_floating_point and not self._must_be_exact(storage):
                found += [(storage, name) for name in codecs if self._takes(storage, name)]
            if "offload" in actions:
                found.append((storage, OFFLOAD))
        return found

    def _must_be_exact(self, storage: int) -> bool:
        return storage in self._exact or self._too_many_gates(storage)

    def codec(self, storage: int, name: str) -> Codec:
        """The codec of that name with the options that a storage's readers need."""
        return CODECS[name](**self.codec_options(storage, name))

    def codec_options(self, storage: int, name: str) -> dict[str, object]:
        """Those options, which JSON can hold."""
        if name == "narrow":
            return {"limit": self._limits[storage]}
        if name not in LOSSY:
            return {}
        options: dict[str, object] = {"gates": self.gates(storage)}
        if name not in _WITHOUT_CLAMPING:
            options["clamped"] = self.clamped(storage)
        if name == "mesa":
            options["groups"] = self._groups(self.whole[storage])
        return options

    def likeness(self, storage: int) -> Hashable:
        """Equal for storages that are made, shaped and read alike, as those of equal blocks are."""
        value = self.whole[storage]
        readers = tuple(sorted(self._readers.get(storage, ())))
        return self._makers.get(storage), value.shape, value.stride, value.dtype, readers, self.gates(storage)

    def gates(self, storage: int) -> tuple[float, float] | None:
        """The numbers that the backward pass compares the storage with, at most two."""
        found, bound = self._gates.get(storage), self._clamps.get(storage, (-math.inf, math.inf))
        if not found:
            return None
        lows, highs = ({number for number in side if math.isfinite(number)} for side in zip(*found, strict=True))
        numbers = sorted(number for number in lows | highs if bound[0] <= number <= bound[1])
        if len(numbers) == 1:
            return (numbers[0], math.inf) if numbers[0] in lows else (-math.inf, numbers[0])
        return (numbers[0], numbers[-1]) if numbers else None

    def _too_many_gates(self, storage: int) -> bool:
        """Whether more numbers are compared with than codecs keep apart."""
        bound = self._clamps.get(storage, (-math.inf, math.inf))
        numbers = {number for pair in self._gates.get(storage, ()) for number in pair if math.isfinite(number)}
        return sum(bound[0] <= number <= bound[1] for number in numbers) > _MOST_GATES

    def clamped(self, storage: int) -> bool:
        """Whether nothing in the storage lies beyond its gates, whatever the batch."""
        gates, clamp = self.gates(storage), self._clamps.get(storage)
        return gates is not None and clamp == gates

    def _takes(self, storage: int, name: str) -> bool:
        value, readers = self.whole[storage], self._readers.get(storage, set())
        if not self.codec(storage, name).accepts(value.shape, value.dtype):
            return False
        # DIVISION is made for the maps that convolutions and batch norms save, and leaves all else alone.
        return name != "division" or bool(readers & {"convolution_backward", "native_batch_norm_backward"})

    def _groups(self, value: Value) -> int:
        """Mesa's groups: the attention's heads where they divide the channels, else one.

        Queries, keys and values that lie side by side in one storage have heads of their own.
        """
        channels = value.shape[1] if len(value.shape) == 4 else value.shape[-1]
        groups = self._heads * max(1, self._operands.get(value.storage, 1))
        return next((g for g in (groups, self._heads) if channels % g == 0), 1)

    def _see_writes(self, op: Op, *, forward: bool) -> None:
        """What the backward pass writes would come back as it was before; what is written in part is nobody's whole."""
        for value in op.writes:
            if not forward or not self._graph.covers_storage(value):
                self._odd.add(self._graph.storage_of(value))

    def _see_forward(self, op: Op) -> None:
        graph, name = self._graph, _name(op)
        for value in op.writes:  # whatever was known is overwritten
            self._clamps.pop(graph.storage_of(value), None)
            self._limits.pop(graph.storage_of(value), None)
        operands = [graph.values[ref.value] for ref in op.args[:3] if isinstance(ref, Ref)]
        if name in _POOLS and len(op.outputs) > 1 and op.outputs[1] is not None:
            spatial = operands[0].shape[-3:] if "3d" in name else operands[0].shape[-2:]
            self._limits[graph.storage_of(op.outputs[1])] = math.prod(spatial)
        if (name == "_softmax" or "scaled_dot_product" in name) and len(operands[0].shape) == 4:
            self._heads = operands[0].shape[1]
            for operand in operands:
                self._operands[operand.storage] = self._operands.get(operand.storage, 0) + 1
        self._see_result(op)

    def _see_result(self, op: Op) -> None:
        graph, name = self._graph, _name(op)
        out = op.outputs[0] if op.outputs else None
        if out is None or not graph.covers_storage(out):
            return
        storage = graph.storage_of(out)
        if not op.is_view:
            self._makers[storage] = name
        if name in _CLAMPS:
            self._clamps[storage] = _CLAMPS[name](op.args)
        if name in ("bernoulli", "bernoulli_"):
            self._two_valued.add(storage)
        elif name in ("div", "mul", "div_", "mul_") and isinstance(op.args[0], Ref) and _positive(op.args[1]):
            # random masks stay such when they are scaled by a number (0 times a negative one is another zero)
            if graph.storage_of(op.args[0].value) in self._two_valued:
                self._two_valued.add(storage)
        elif op.writes:
            self._two_valued.discard(storage)

    def _see_backward(self, op: Op) -> None:
        graph, name = self._graph, _name(op)
        for value in op.inputs:
            self._readers.setdefault(graph.storage_of(value), set()).add(name)
        if name in _GATES:
            position, numbers = _GATES[name]
            read = op.args[position] if position < len(op.args) else None
            if isinstance(read, Ref):
                self._gates.setdefault(graph.storage_of(read.value), []).append(numbers(op.args))
        if name in _COMPARISONS:
            self._exact.update(graph.storage_of(value) for value in op.inputs)

    def _see_exact(self, op: Op) -> None:
        name, inputs = _name(op), list(op.inputs)
        if name in _NORM_INPUTS:
            inputs = inputs[2:]  # the gradient and the input may be inexact, the statistics may not
        elif name == "rrelu_with_noise_backward":
            inputs = inputs[2:]
        elif _ATTENTION in name:
            inputs = [ref.value for ref in op.args[_LOGSUMEXP:] if isinstance(ref, Ref)]
        elif not any(word in name for word in _EXACT_READERS):
            return
        self._exact.update(self._graph.storage_of(v) for v in inputs)
