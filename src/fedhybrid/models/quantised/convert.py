"""Reads a float network's operations off its forward pass, with batch norm folded into the convolutions before it."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.errors import ConfigError
from fedhybrid.models.quantised.graph import Add, Conv, Flatten, Input, MaxPool, Mean, Operation, Pad, Subsample

__all__ = ["FloatNetwork", "read_network"]


@dataclass(kw_only=True)
class FloatNetwork:
    """Operations, and the tensors of each convolution and of the classifier; sites and shapes are filled in later."""

    operations: list[Operation] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    head: nn.Linear | None = None
    linear: dict[int, str] = field(default_factory=dict)  # which convolutions are linear layers, and their names

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What each operation gives for a batch, in float.

        Raises:
            ConfigError: A linear layer reads what is not flat, or a sum would repeat one of its terms.
        """
        found: list[Tensor] = []
        for op in self.operations:
            read = [found[source] for source in op.sources] or [x]
            if isinstance(op, Conv) and op.number in self.linear:
                _refuse_unless_flat(read[0], self.linear[op.number])
            if isinstance(op, Add) and read[0].shape != read[1].shape:
                shapes = " and ".join(str(tuple(term.shape[1:])) for term in read)
                raise ConfigError(f"a sum of tensors of different shapes, {shapes}, has no counterpart in integers")
            found.append(self._run(op, read))
        _refuse_unless_flat(found[-1], "the last linear layer")
        return found

    def _run(self, op: Operation, inputs: list[Tensor]) -> Tensor:
        x = inputs[0]
        match op:
            case Input():
                return x
            case Conv():
                groups = op.weight_shape[0] if op.depthwise else 1
                weight, bias = self.weights[op.number], self.biases[op.number]
                flat = x.dim() == 2
                y = F.conv2d(
                    x[:, :, None, None] if flat else x, weight, bias, op.stride, op.padding, op.dilation, groups
                )
                return _activated(y.flatten(1) if flat else y, op.top)
            case Add():
                return _activated(x + inputs[1], op.top)
            case MaxPool():
                return F.max_pool2d(x, op.kernel, op.stride, op.padding)
            case Mean():
                return x.mean(dim=(2, 3), keepdim=len(op.shape) == 3)
            case Subsample():
                return x[:, :, :: op.step[0], :: op.step[1]]
            case Pad():
                return F.pad(x, (0, 0, 0, 0, op.before, op.after))
            case Flatten():
                return x.flatten(1)


def _refuse_unless_flat(x: Tensor, path: str) -> None:
    if x.dim() != 2:
        raise ConfigError(
            f"{path}: a linear layer must read flat samples to be quantised, found shape {tuple(x.shape[1:])}; "
            "put a Flatten before it"
        )


def _activated(y: Tensor, top: float | None) -> Tensor:
    return y if top is None else y.clamp(0, top)


def read_network(model: nn.Module) -> FloatNetwork:
    """The network's operations. The model is left as it is; dropout has no part in them.

    Raises:
        ConfigError: It has a layer, or uses one in a way, that has no counterpart in integers; one line for each.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # the model's own code may raise whatever it likes when it is traced
        raise ConfigError(
            f"the model ({type(model).__name__}) must be one that torch.fx can trace to be quantised; "
            f"that failed with {type(error).__name__}: {error}"
        ) from error
    reader = _Reader(model)
    for node in graph.nodes:
        reader.read(node)
    if reader.network.head is None and not reader.problems:
        reader.problems.append(f"the model ({type(model).__name__}) must end in a torch.nn.Linear to be quantised")
    if reader.problems:
        raise ConfigError(reader.problems)
    return reader.network


class _Tracer(fx.Tracer):
    """Takes also modules that a forward pass makes on its way, such as a slice of a Sequential."""

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:
            return type(mod).__name__


class _Reader:
    """Turns the traced calls into operations, one after the other."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.network = FloatNetwork()
        self.problems: list[str] = []
        self.number_of: dict[fx.Node, int] = {}  # the operation that gives a call's result

    def read(self, node: fx.Node) -> None:
        """Takes one call in; what cannot be read becomes a problem, and so do calls that would need it no more."""
        if node.op == "placeholder":
            self._add(node, Input(sources=()))
        elif node.op == "output":
            last = node.args[0]
            if not (self.network.head is not None and last is self.head_node) and not self.problems:
                self.problems.append("the model's result must be that of its last torch.nn.Linear to be quantised")
        elif all(source in self.number_of for source in node.all_input_nodes):
            problem = self._module(node) if node.op == "call_module" else self._function(node)
            if problem is not None:
                self.problems.append(problem)

    head_node: fx.Node | None = None

    def _add(self, node: fx.Node, operation: Operation) -> None:
        self.number_of[node] = len(self.network.operations)
        self.network.operations.append(operation)

    def _module(self, node: fx.Node) -> str | None:
        path = str(node.target)
        module = self.modules[path]
        source = (self.number_of[node.all_input_nodes[0]],)
        match module:
            case nn.Conv2d():
                return self._conv(node, module, path)
            case nn.Linear():
                return self._linear(node, module, path)
            case nn.BatchNorm2d():
                return self._folded(node, module, path)
            case nn.ReLU():
                return self._activation(node, math.inf, path)
            case nn.ReLU6():
                return self._activation(node, 6.0, path)
            case nn.MaxPool2d():
                if module.ceil_mode or module.return_indices or _pair(module.dilation) != (1, 1):
                    return f"{path}: max-pooling with ceil_mode, dilation or indices has no counterpart in integers"
                stride = module.kernel_size if module.stride is None else module.stride
                pool = MaxPool(
                    sources=source,
                    kernel=_pair(module.kernel_size),
                    stride=_pair(stride),
                    padding=_pair(module.padding),
                )
                self._add(node, pool)
            case nn.AdaptiveAvgPool2d() if _pair(module.output_size) == (1, 1):
                self._add(node, Mean(sources=source, shape=(0, 1, 1)))
            case nn.Flatten() if module.start_dim == 1 and module.end_dim == -1:
                self._add(node, Flatten(sources=source))
            case nn.Identity() | nn.Dropout() | nn.Dropout2d():
                self.number_of[node] = source[0]
            case _:
                known = "Conv2d, BatchNorm2d after it, ReLU, ReLU6, MaxPool2d, AdaptiveAvgPool2d(1), Flatten, Linear"
                return f"{path}: {type(module).__name__} has no counterpart in integers; there are those of {known}"
        return None

    def _function(self, node: fx.Node) -> str | None:
        target, args = node.target, node.args
        sources = tuple(self.number_of[source] for source in node.all_input_nodes)
        named = str(target) if isinstance(target, str) else str(getattr(target, "__name__", target))
        keepdim, around = _mean_kept(node), _channels_padded(node)
        if named in ("add", "iadd") and _terms(node):
            self._add(node, Add(sources=tuple(self.number_of[cast(fx.Node, arg)] for arg in args)))
        elif named in ("relu", "relu_") and _options(node, "inplace") is not None:
            return self._activation(node, math.inf, node.name)
        elif named == "relu6" and _options(node, "inplace") is not None:
            return self._activation(node, 6.0, node.name)
        elif named == "flatten" and _options(node, "start_dim", "end_dim") in _FLAT:
            self._add(node, Flatten(sources=sources))
        elif named == "mean" and keepdim is not None:
            self._add(node, Mean(sources=sources, shape=(0, 1, 1) if keepdim else (0,)))
        elif target is operator.getitem and (step := _steps(args[1])) is not None:
            self._add(node, Subsample(sources=sources, step=step))
        elif named == "pad" and around is not None:
            self._add(node, Pad(sources=sources, before=around[0], after=around[1]))
        else:
            given = [*map(str, args), *(f"{name}={value}" for name, value in node.kwargs.items())]
            return f"{node.name}: {named}({', '.join(given)}) has no counterpart in integers"
        return None

    def _conv(self, node: fx.Node, module: nn.Conv2d, path: str) -> str | None:
        depthwise = module.groups > 1
        if depthwise and not module.groups == module.in_channels == module.out_channels:
            return f"{path}: a convolution's groups must be 1 or its channels, in and out; found {module.groups}"
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return f"{path}: a convolution must be padded by zeros, and their number be given"
        self._add(
            node,
            Conv(
                sources=(self.number_of[node.all_input_nodes[0]],),
                number=len(self.network.weights),
                weight_shape=cast(Any, tuple(module.weight.shape)),
                stride=_pair(module.stride),
                padding=_pair(module.padding),
                dilation=_pair(module.dilation),
                depthwise=depthwise,
            ),
        )
        self._hold(module.weight, module.bias)
        return None

    def _hold(self, weight: Tensor, bias: Tensor | None) -> None:
        self.network.weights.append(weight.detach().clone().float())
        self.network.biases.append(torch.zeros(len(weight)) if bias is None else bias.detach().clone().float())

    def _linear(self, node: fx.Node, module: nn.Linear, path: str) -> str | None:
        if [user.op for user in node.users] == ["output"]:
            self.network.head, self.head_node = module, node
            # The classifier is no operation of the integers': what it reads must be their last.
            if self.number_of[node.all_input_nodes[0]] != len(self.network.operations) - 1:
                return f"{path}: the last linear layer must read what is worked out last"
            self.number_of[node] = -1
            return None
        source = self.number_of[node.all_input_nodes[0]]
        weight = module.weight[:, :, None, None]
        conv = Conv(sources=(source,), number=len(self.network.weights), weight_shape=cast(Any, tuple(weight.shape)))
        self._add(node, conv)
        self.network.linear[conv.number] = path
        self._hold(weight, module.bias)
        return None

    def _alone(self, node: fx.Node) -> Conv | Add | None:
        """The operation before a call, if nothing else reads it and it has no activation yet."""
        source = node.all_input_nodes[0]
        before = self.network.operations[self.number_of[source]]
        if isinstance(before, (Conv, Add)) and before.top is None and len(source.users) == 1:
            return before
        return None

    def _folded(self, node: fx.Node, norm: nn.BatchNorm2d, path: str) -> str | None:
        conv = self._alone(node)
        if not isinstance(conv, Conv) or norm.running_mean is None or norm.running_var is None:
            return f"{path}: batch norm must follow a convolution that nothing else reads, and keep running statistics"
        factor = (norm.running_var + norm.eps).rsqrt()
        shift = torch.zeros_like(factor)
        if norm.affine:
            factor, shift = factor * norm.weight.detach(), norm.bias.detach()
        n = conv.number
        self.network.weights[n] = self.network.weights[n] * factor.view(-1, 1, 1, 1)
        self.network.biases[n] = shift + (self.network.biases[n] - norm.running_mean) * factor
        self.number_of[node] = self.number_of[node.all_input_nodes[0]]
        return None

    def _activation(self, node: fx.Node, top: float, path: str) -> str | None:
        before = self._alone(node)
        if before is None:
            return f"{path}: an activation must follow a convolution, linear layer or sum that nothing else reads"
        number = self.number_of[node.all_input_nodes[0]]
        self.network.operations[number] = replace(before, top=top)
        self.number_of[node] = number
        return None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


_FLAT = ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1})


def _options(node: fx.Node, *names: str) -> dict[str, Any] | None:
    """Arguments after the tensor by name, in whichever way they were given; None where there are others."""
    placed = node.args[1:]
    if not node.args or len(placed) > len(names) or set(node.kwargs) - set(names):
        return None
    return {**dict(zip(names, placed, strict=False)), **node.kwargs}


def _terms(node: fx.Node) -> bool:
    """Whether a call adds two tensors, and does nothing else (`alpha`)."""
    return len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)


def _mean_kept(node: fx.Node) -> bool | None:
    """Of a mean over pixels whether they stay as dimensions; None for others."""
    given = _options(node, "dim", "keepdim") or {}
    dims, keepdim = given.get("dim"), given.get("keepdim", False)
    over_pixels = isinstance(dims, (tuple, list)) and tuple(dims) in ((2, 3), (-2, -1))
    return keepdim if over_pixels and isinstance(keepdim, bool) else None


def _steps(index: Any) -> tuple[int, int] | None:
    """Of x[:, :, ::a, ::b]."""
    if not (isinstance(index, tuple) and len(index) == 4 and all(isinstance(part, slice) for part in index)):
        return None
    if any(part.start or part.stop is not None for part in index) or any((part.step or 1) != 1 for part in index[:2]):
        return None
    return index[2].step or 1, index[3].step or 1


def _channels_padded(node: fx.Node) -> tuple[int, int] | None:
    """Of F.pad(x, (0, 0, 0, 0, before, after))."""
    given = _options(node, "pad", "mode", "value") or {}
    around = given.get("pad", ())
    if not isinstance(around, (tuple, list)) or len(around) != 6 or any(around[:4]):
        return None
    plain = given.get("mode", "constant") == "constant" and not given.get("value")
    return (around[4], around[5]) if plain else None
