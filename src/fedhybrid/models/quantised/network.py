"""A classifier of integers that is trained in place: the quantised graph, and a float linear layer on top.

The whole graph is one autograd function, so that nothing but what its backward pass reads is kept: for each operation
that a gradient goes through one bit for each output, and of a trained layer's input the trained channels as int8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedhybrid.models.quantised import arithmetic
from fedhybrid.models.quantised.arithmetic import MOST
from fedhybrid.models.quantised.graph import (
    Add,
    Conv,
    Flatten,
    Graph,
    Input,
    LayerUpdate,
    MaxPool,
    Mean,
    Operation,
    Pad,
    Subsample,
)

__all__ = ["QuantisedConv", "QuantisedNet"]


class QuantisedConv(nn.Module):
    """The tensors of one convolution, in units of its scales: 1 is one step of the integer grid.

    Trained ones are parameters (`weight`, or `part` for some input channels, whose numbers are in `kept`; `bias`) and
    are rounded where they are read, weights to -127 to 127; others are integers (`weight_q` int8, `bias_q` int32).

    Attributes:
        update: What of it is trained.
    """

    weight: Tensor
    part: Tensor
    kept: Tensor
    bias: Tensor
    weight_q: Tensor
    bias_q: Tensor
    weight_scale: Tensor
    channel_order: Tensor

    def __init__(self, conv: Conv, update: LayerUpdate, *, dtype: torch.dtype, ordered: bool) -> None:
        super().__init__()
        self.update = update
        out, channels = conv.channels_out, conv.channels_in
        if update.channels == channels:
            self.weight = nn.Parameter(torch.zeros(conv.weight_shape, dtype=dtype))
        else:
            self.register_buffer("weight_q", torch.zeros(conv.weight_shape, dtype=torch.int8))
        if 0 < update.channels < channels:
            self.part = nn.Parameter(torch.zeros(conv.part_shape(update.channels), dtype=dtype))
            self.register_buffer("kept", torch.arange(update.channels))
        if update.bias:
            self.bias = nn.Parameter(torch.zeros(out))
        else:
            self.register_buffer("bias_q", torch.zeros(out, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.ones(out))
        if ordered:
            self.register_buffer("channel_order", torch.arange(channels))

    def tensors(self) -> dict[str, Tensor]:
        """Those that the step reads, as they are now."""
        named = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: tensor for name, tensor in named.items() if name != "channel_order"}


class QuantisedNet(nn.Module):
    """Maps float samples to class scores through a quantised graph and a float classifier.

    Attributes:
        graph: Its operations.
        updates: What of each convolution is trained; gradients end at the first of them.
        qas: Whether gradients are scaled to the integer grid (quantisation-aware scaling).
    """

    scales: Tensor
    zeros: Tensor

    def __init__(
        self,
        graph: Graph,
        updates: Sequence[LayerUpdate] | None = None,
        *,
        qas: bool = True,
        dtype: torch.dtype = torch.float32,
        ordered: bool = False,
    ) -> None:
        """Makes it with empty tensors, whose values are loaded.

        Args:
            graph: Its operations.
            updates: What of each convolution is trained; None is everything.
            qas: Scale gradients.
            dtype: Of trained weights; bfloat16 is the smallest with gradients in torch that holds all of int8.
            ordered: Hold in which order a sparse update takes input channels, too (`channel_order`).
        """
        super().__init__()
        self.graph, self.qas = graph, qas
        self.updates = tuple(graph.everything() if updates is None else updates)
        pairs = zip(graph.convs, self.updates, strict=True)
        self.convs = nn.ModuleList(QuantisedConv(conv, up, dtype=dtype, ordered=ordered) for conv, up in pairs)
        self.register_buffer("scales", torch.ones(graph.sites))
        self.register_buffer("zeros", torch.zeros(graph.sites))
        self.head = nn.Linear(graph.features, graph.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, (b, classes)."""
        return self.head(self.features(x))  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        """The last operation's output, back in float and flat: (b, features)."""
        keys, given = ["scales", "zeros"], [self.scales, self.zeros]
        for number, conv in enumerate(self.convs):
            assert isinstance(conv, QuantisedConv)
            for name, tensor in conv.tensors().items():
                keys.append(f"{number}.{name}")
                given.append(tensor)
        wiring = _Wiring(
            graph=self.graph, updates=self.updates, qas=self.qas, keys=tuple(keys), keeps=torch.is_grad_enabled()
        )
        return _Integers.apply(wiring, x, *given)  # type: ignore[no-any-return, no-untyped-call]

    def integers(self, x: Tensor) -> list[Tensor]:
        """What each operation gives, int8; for looking at."""
        keys = {"scales": self.scales, "zeros": self.zeros}
        for number, conv in enumerate(self.convs):
            assert isinstance(conv, QuantisedConv)
            keys |= {f"{number}.{name}": tensor for name, tensor in conv.tensors().items()}
        wiring = _Wiring(graph=self.graph, updates=self.updates, qas=self.qas, keys=tuple(keys), keeps=False)
        with torch.no_grad():
            walk = _Walk(wiring, list(keys.values()))
            return [walk.forward(op, x) for op in self.graph.operations]


@dataclass(frozen=True, kw_only=True)
class _Wiring:
    """What the autograd function knows beside tensors."""

    graph: Graph
    updates: tuple[LayerUpdate, ...]
    qas: bool
    keys: tuple[str, ...]
    keeps: bool


class _Integers(torch.autograd.Function):
    """The graph from float samples to float features."""

    @staticmethod
    def forward(ctx: Any, wiring: _Wiring, x: Tensor, *given: Tensor) -> Tensor:
        walk = _Walk(wiring, list(given))
        last = len(wiring.graph.operations) - 1
        last_read = {source: number for number, op in enumerate(wiring.graph.operations) for source in op.sources}
        for number, op in enumerate(wiring.graph.operations):
            walk.forward(op, x)
            for source in op.sources:  # what nobody reads any more must go now
                if last_read[source] == number:
                    walk.values[source] = None
        scale, zero = walk.scale(last), walk.zero(last)
        features = walk.output(last).float().sub_(zero).mul_(scale).flatten(1)
        kept = [(key, tensor) for key, tensor in walk.kept.items()]
        ctx.wiring, ctx.kept_keys = wiring, [key for key, _ in kept]
        ctx.batch = x.shape[0]
        ctx.save_for_backward(*given, *(tensor for _, tensor in kept))
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        wiring: _Wiring = ctx.wiring
        saved = list(ctx.saved_tensors)
        count = len(wiring.keys)
        walk = _Walk(wiring, saved[:count])
        walk.kept = dict(zip(ctx.kept_keys, saved[count:], strict=True))
        del saved
        found = walk.backward(g, ctx.batch)
        return (None, None, *(found.get(key) for key in wiring.keys))


class _Walk:
    """One pass through the graph, forward or backward."""

    def __init__(self, wiring: _Wiring, given: list[Tensor]) -> None:
        self.graph, self.updates, self.wiring = wiring.graph, wiring.updates, wiring
        self.tensors = dict(zip(wiring.keys, given, strict=True))
        reached = self.graph.reached(wiring.updates)
        self.reached = reached if wiring.keeps else tuple(False for _ in reached)
        self.values: list[Tensor | None] = []
        self.kept: dict[tuple[int, str], Tensor] = {}

    def output(self, number: int) -> Tensor:
        """What an operation gave."""
        value = self.values[number]
        assert value is not None
        return value

    def scale(self, number: int) -> Tensor:
        """Of an operation's output."""
        return self.tensors["scales"][self.graph.operations[number].site]

    def zero(self, number: int) -> Tensor:
        """Zero point of an operation's output."""
        return self.tensors["zeros"][self.graph.operations[number].site]

    def of(self, conv: Conv, name: str) -> Tensor:
        """A tensor of a convolution's."""
        return self.tensors[f"{conv.number}.{name}"]

    def weight(self, conv: Conv) -> Tensor:
        """All weights of a convolution: integers, as float32."""
        channels = self.updates[conv.number].channels
        if channels == conv.channels_in:
            return self.of(conv, "weight").float().round().clamp_(-MOST, MOST)
        whole = self.of(conv, "weight_q").float()
        if channels:
            part = self.of(conv, "part").float().round().clamp_(-MOST, MOST)
            whole.index_copy_(0 if conv.depthwise else 1, self.of(conv, "kept"), part)
        return whole

    def bias(self, conv: Conv) -> Tensor:
        """The biases of a convolution: integers, as float32."""
        return self.of(conv, "bias").round() if self.updates[conv.number].bias else self.of(conv, "bias_q").float()

    def channels(self, conv: Conv) -> Tensor | None:
        """The input channels whose weights are trained, where not all or none are."""
        return self.of(conv, "kept") if 0 < self.updates[conv.number].channels < conv.channels_in else None

    def effective(self, conv: Conv, number: int) -> Tensor:
        """E = sw sx / sy of each output channel."""
        return self.of(conv, "weight_scale") * self.scale(conv.sources[0]) / self.scale(number)

    def forward(self, op: Operation, x: Tensor) -> Tensor:
        """Works out the next operation and keeps what its gradient needs."""
        number = len(self.values)
        masked = self.reached[number]
        sources = [self.output(source) for source in op.sources]
        zeros = [self.zero(source) for source in op.sources]
        mask: Tensor | None = None
        match op:
            case Input():
                y = arithmetic.rounded(x.div(self.scale(0)).round_().add_(self.zero(0)))
            case Conv():
                scaling = (self.effective(op, number), zeros[0], self.zero(number))
                tensors = (self.weight(op), self.bias(op))
                y, mask = arithmetic.conv_forward(op, sources[0], tensors, scaling, masked=masked)
                if masked and self.updates[op.number].channels:
                    kept = self.channels(op)
                    self.kept[number, "x"] = sources[0] if kept is None else sources[0].index_select(1, kept)
            case Add():
                scales = (self.scale(op.sources[0]), self.scale(op.sources[1]), self.scale(number))
                pair = (sources[0], sources[1])
                y, mask = arithmetic.add_forward(op, pair, scales, (*zeros, self.zero(number)), masked=masked)
            case MaxPool():
                y, mask = arithmetic.max_pool_forward(op, sources[0], masked=masked)
            case Mean():
                y = arithmetic.mean_forward(sources[0], op.shape)
            case Subsample():
                y = arithmetic.subsample_forward(op, sources[0])
            case Pad():
                y = arithmetic.pad_forward(op, sources[0], zeros[0])
            case Flatten():
                y = sources[0].flatten(1)
        if mask is not None:
            self.kept[number, "mask"] = mask
        self.values.append(y)
        return y

    def backward(self, g: Tensor, batch: int) -> dict[str, Tensor]:
        """Gradients of the trained tensors, from that of the features."""
        last = len(self.graph.operations) - 1
        found: dict[str, Tensor] = {}
        due = {last: (g * self.scale(last)).view(batch, *self.graph.operations[last].shape)}
        for number in range(last, -1, -1):
            g_y = due.pop(number, None)
            if g_y is None or not self.reached[number]:
                continue
            op = self.graph.operations[number]
            for source, g_x in zip(op.sources, self._pass_on(op, number, g_y, found), strict=True):
                if g_x is not None and self.reached[source]:
                    due[source] = due[source] + g_x if source in due else g_x
            del g_y
        return found

    def _pass_on(self, op: Operation, number: int, g: Tensor, found: dict[str, Tensor]) -> Sequence[Tensor | None]:
        shape = self.graph.operations[op.sources[0]].shape
        mask = self.kept.pop((number, "mask"), None)
        match op:
            case Conv():
                assert mask is not None
                flat = g.dim() == 2
                size = (*g.shape, 1, 1) if flat else tuple(g.shape)
                g_acc = g.view(size) * arithmetic.unpacked(mask, size)
                g_acc.mul_(self.effective(op, number).view(1, -1, 1, 1))
                self._of_parameters(op, number, g_acc, found)
                passes = self.reached[op.sources[0]]
                return [arithmetic.input_gradient(op, shape, self.weight(op), g_acc) if passes else None]
            case Add():
                g = g if mask is None else g * arithmetic.unpacked(mask, g.shape)
                first, second = op.sources
                return arithmetic.add_backward(g, (self.scale(first), self.scale(second), self.scale(number)))
            case MaxPool():
                assert mask is not None
                return [arithmetic.max_pool_backward(op, shape, g, mask)]
            case Mean():
                whole = (g / (shape[1] * shape[2])).view(g.shape[0], -1, 1, 1)
                return [whole.expand(g.shape[0], *shape)]
            case Subsample():
                return [arithmetic.subsample_backward(op, shape, g)]
            case Pad():
                return [arithmetic.pad_backward(op, g)]
            case Flatten():
                return [g.view(g.shape[0], *shape)]
            case Input():
                return []

    def _of_parameters(self, conv: Conv, number: int, g_acc: Tensor, found: dict[str, Tensor]) -> None:
        update = self.updates[conv.number]
        scale = self.of(conv, "weight_scale")
        if update.bias:
            g_b = g_acc.sum(dim=(0, 2, 3))
            if self.wiring.qas:
                g_b.div_((scale * self.scale(conv.sources[0])).square_())
            found[f"{conv.number}.bias"] = g_b
        if update.channels:
            kept = self.channels(conv)
            x = self.kept.pop((number, "x"))
            g_w = arithmetic.weight_gradient(conv, x, self.zero(conv.sources[0]), g_acc, kept)
            if self.wiring.qas:
                own = scale.index_select(0, kept) if conv.depthwise and kept is not None else scale
                g_w.div_(own.square().view(-1, 1, 1, 1))
            name = "weight" if kept is None else "part"
            found[f"{conv.number}.{name}"] = g_w.to(self.of(conv, name).dtype)
