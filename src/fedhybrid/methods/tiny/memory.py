"""Bytes of training a quantised network on a microcontroller, worked out from its graph for one sample at a time.

The device that this describes holds the trained weights, what the backward pass reads and the gradients in SRAM, and
the network as it was shipped and the program in flash. It computes output by output, so that no sum of a whole layer is
held. `update_memory` is the paper's model of what a scheme adds; `sram_bytes` and `flash_bytes` are RECONSTRUCTED.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedhybrid.models.quantised import Add, Conv, Graph, LayerUpdate, MaxPool, Operation

__all__ = ["FLOAT", "INTEGER", "UpdateMemory", "flash_bytes", "sram_bytes", "update_memory"]

FLOAT, INTEGER = "fp32", "int8-stochastic"  # how trained weights are stored
_WEIGHT_BYTES = {FLOAT: 4, INTEGER: 1}
_GRADIENT_BYTES = 4  # of activations and of weights: float32
_BIAS_BYTES = 4
_CALL_BYTES = 64  # ours: a call of the program with the addresses and sizes that it is given
_KERNEL_BYTES = 64 * 1024  # ours: the operators' own code


@dataclass(frozen=True, kw_only=True)
class UpdateMemory:
    """What a scheme adds to inference, for one sample; the classifier is not counted.

    Attributes:
        masks_bytes: One bit for each output of an updated convolution.
        inputs_bytes: The trained input channels of its input, int8.
        weights_bytes: The trained weights, int8.
        biases_bytes: The trained biases, int32.
        others_bytes: Not in the paper's model, as its networks have neither: bits of sums with an activation, and a
            byte for each output of max-pooling, after the first updated layer.
    """

    masks_bytes: int
    inputs_bytes: int
    weights_bytes: int
    biases_bytes: int
    others_bytes: int

    @property
    def saved_bytes(self) -> int:
        """What the forward pass leaves for the backward pass."""
        return self.masks_bytes + self.inputs_bytes + self.others_bytes

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.saved_bytes + self.weights_bytes + self.biases_bytes


def update_memory(graph: Graph, updates: Sequence[LayerUpdate]) -> UpdateMemory:
    """The memory model of the paper's sparse update: masks, inputs, weights and biases of what is updated.

    Source: J. Lin et al., "On-Device Training Under 256KB Memory", NeurIPS 2022, and its published code.
    """
    reached = graph.reached(updates)
    masks = inputs = weights = biases = others = 0
    for op, needed in zip(graph.operations, reached, strict=True):
        if isinstance(op, Conv) and needed:
            update = updates[op.number]
            masks += _bits(op.elements)
            biases += _BIAS_BYTES * op.channels_out if update.bias else 0
            inputs += _kept_bytes(graph, op, update)
            weights += op.part_elements(update.channels) if update.channels else 0
        elif needed:
            others += _bits(op.elements) if isinstance(op, Add) and op.top is not None else 0
            others += op.elements if isinstance(op, MaxPool) else 0
    return UpdateMemory(
        masks_bytes=masks, inputs_bytes=inputs, weights_bytes=weights, biases_bytes=biases, others_bytes=others
    )


def _bits(count: int) -> int:
    return math.ceil(count / 8)


def _kept_bytes(graph: Graph, conv: Conv, update: LayerUpdate) -> int:
    return graph.operations[conv.sources[0]].elements // conv.channels_in * update.channels


def _trained_bytes(conv: Conv, update: LayerUpdate, bytes_each: int) -> int:
    return bytes_each * conv.part_elements(update.channels) if update.channels else 0


def sram_bytes(graph: Graph, updates: Sequence[LayerUpdate], *, latent: str = INTEGER) -> int:
    """Peak of one training step of one sample, RECONSTRUCTED: int8 activations, float32 gradients.

    Each update follows its gradient at once, whose memory is free then, so that no two gradients of weights coexist.
    An operation's gradients do, those of its output, weights and inputs: that of the input is worked out from the
    weights as they were before their update. The classifier's weights and gradient are float32 and count, too. The
    optimizer is taken to hold no state.

    Args:
        graph: The network.
        updates: What is trained.
        latent: How trained weights are stored, `FLOAT` (four bytes) or `INTEGER` (one).
    """
    ops, reached = graph.operations, graph.reached(updates)
    last = len(ops) - 1
    head_bytes = 4 * graph.classes * (graph.features + 1)
    resident = head_bytes + sum(
        _trained_bytes(conv, updates[conv.number], _WEIGHT_BYTES[latent])
        + (_BIAS_BYTES * conv.channels_out if updates[conv.number].bias else 0)
        for conv in graph.convs
    )
    reads = {source: number for number, op in enumerate(ops) for source in op.sources} | {last: last + 1}
    values: dict[int, int] = {}
    kept: dict[int, int] = {}
    peak = 0
    for number, op in enumerate(ops):
        values[number] = op.elements
        peak = max(peak, resident + sum(values.values()) + sum(kept.values()))
        whole = _whole_before(ops[: number + 1], reached, updates)
        if reached[number]:
            kept[number] = _kept_by(graph, number, updates)
        for source in set(op.sources):
            if reads[source] == number and source not in whole:
                values.pop(source, None)
    grads = {last: _GRADIENT_BYTES * ops[last].elements} if reached[last] else {}
    peak = max(peak, resident + head_bytes + sum(values.values()) + sum(kept.values()) + sum(grads.values()))
    values.pop(last)
    for number in range(last, -1, -1):
        op = ops[number]
        if not reached[number]:
            continue
        own = 0
        if isinstance(op, Conv):
            own = _trained_bytes(op, updates[op.number], _GRADIENT_BYTES)
            own += _GRADIENT_BYTES * op.channels_out if updates[op.number].bias else 0
        held = resident + sum(values.values()) + sum(kept.values())
        grads |= {source: _GRADIENT_BYTES * ops[source].elements for source in op.sources if reached[source]}
        peak = max(peak, held + sum(grads.values()) + own)
        grads.pop(number)
        kept.pop(number, None)
        if op.sources and not any(source in op.sources for source in _whole_before(ops[:number], reached, updates)):
            values = {n: size for n, size in values.items() if n not in op.sources}
    return peak


def _whole_before(ops: Sequence[Operation], reached: Sequence[bool], updates: Sequence[LayerUpdate]) -> frozenset[int]:
    """Values that wait for the gradients of these operations as they are."""
    convs = [op for op, needed in zip(ops, reached, strict=False) if isinstance(op, Conv) and needed]
    return frozenset(conv.sources[0] for conv in convs if updates[conv.number].channels == conv.channels_in)


def _kept_by(graph: Graph, number: int, updates: Sequence[LayerUpdate]) -> int:
    """What an operation's gradient needs beside values that are kept as they are."""
    op = graph.operations[number]
    if isinstance(op, Conv):
        update = updates[op.number]
        part = _kept_bytes(graph, op, update) if update.channels < op.channels_in else 0
        return _bits(op.elements) + part
    if isinstance(op, Add):
        return _bits(op.elements) if op.top is not None else 0
    return op.elements if isinstance(op, MaxPool) else 0


def flash_bytes(graph: Graph, updates: Sequence[LayerUpdate]) -> int:
    """The network as it is shipped, and the training program; RECONSTRUCTED.

    Weights int8, biases int32, a float32 scale for each output channel, scale and zero point of each tensor, the
    numbers of trained channels (two bytes each), the float32 classifier; 64 bytes for each call of the program and
    64 KiB for the code of the operators.
    """
    channels = sum(update.channels for update in updates)
    model = sum(math.prod(conv.weight_shape) + 8 * conv.channels_out for conv in graph.convs)
    model += 8 * graph.sites + 2 * channels + 4 * graph.classes * (graph.features + 1)
    return model + _CALL_BYTES * _calls(graph, updates) + _KERNEL_BYTES


def _calls(graph: Graph, updates: Sequence[LayerUpdate]) -> int:
    """Calls of the training program: forward, loss, backward, updates."""
    reached = graph.reached(updates)
    count = len(graph.operations) + 5  # classifier and loss, their gradients, two updates
    for number, op in enumerate(graph.operations):
        if isinstance(op, Conv) and reached[number]:
            update = updates[op.number]
            count += 1 + 2 * update.bias + 2 * (update.channels > 0) + reached[op.sources[0]]
        elif reached[number]:
            count += 1
    return count
