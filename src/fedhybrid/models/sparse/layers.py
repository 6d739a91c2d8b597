"""A convolution and a linear layer whose weight is sparse, in training memory and not only in value.

The dense weight exists twice in a step, each time for one operator: it is scattered from the values for the forward
pass, is not saved, and is scattered again for the gradient of the input. The dense gradient of the weight exists for
one operator too: the values' gradient is gathered from it. Convolutions with the scheme "channel" never have either:
they run as smaller dense ones.
"""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.models.sparse.layout import Layout

__all__ = ["PATTERN_IDS", "PLACES", "VALUES", "SparseConv2d", "SparseLinear"]

VALUES, PLACES, PATTERN_IDS = "values", "places", "patterns"  # names of a compact layer's tensors, beside "bias"

_ConvForm = tuple[Any, Any, Any]  # stride, padding, dilation


class _ConvOfValues(torch.autograd.Function):
    """A convolution that saves its input and the compact weight only."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes arguments by position
        ctx: Any,
        x: Tensor,
        values: Tensor,
        places: Tensor,
        patterns: Tensor | None,
        bias: Tensor | None,
        layout: Layout,
        form: _ConvForm,
    ) -> Tensor:
        ctx.save_for_backward(x, values, places, patterns)
        ctx.layout, ctx.form, ctx.has_bias = layout, form, bias is not None
        return F.conv2d(x, layout.scattered(values, places, patterns), bias, *form)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (x, values, places, patterns) = grads[0], ctx.saved_tensors
        layout: Layout = ctx.layout
        wants_x, wants_values, wants_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[4]
        stride, padding, dilation = ctx.form
        sizes = [layout.shape[0]] if ctx.has_bias else None

        def derived(weight: Tensor, mask: list[bool]) -> list[Tensor]:
            # autograd's own operator, so that the bits are those of the dense layer
            return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
                grad, x, weight, sizes, stride, padding, dilation, False, [0, 0], 1, mask
            )

        grad_x = grad_values = grad_bias = None
        if wants_values or wants_bias:
            # Of the weight only the shape is read here: a dense one would be memory for nothing.
            shape_only = values.new_zeros(1).expand(layout.shape)
            _, grad_weight, grad_bias = derived(shape_only, [False, wants_values, wants_bias])
            if wants_values:
                grad_values = layout.gathered(grad_weight, places, patterns)
            del grad_weight
        if wants_x:
            grad_x = derived(layout.scattered(values, places, patterns), [True, False, False])[0]
        return grad_x, grad_values, None, None, grad_bias if wants_bias else None, None, None


class _LinearOfValues(torch.autograd.Function):
    """The same for a linear layer; x of shape (n, in)."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes arguments by position
        ctx: Any,
        x: Tensor,
        values: Tensor,
        places: Tensor,
        patterns: Tensor | None,
        bias: Tensor | None,
        layout: Layout,
    ) -> Tensor:
        ctx.save_for_backward(x, values, places, patterns)
        ctx.layout = layout
        return F.linear(x, layout.scattered(values, places, patterns), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (x, values, places, patterns) = grads[0], ctx.saved_tensors
        layout: Layout = ctx.layout
        grad_x = grad_values = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_values = layout.gathered(grad.t().mm(x), places, patterns)
        if ctx.needs_input_grad[4]:
            grad_bias = grad.sum(0)
        if ctx.needs_input_grad[0]:
            grad_x = grad.mm(layout.scattered(values, places, patterns))
        return grad_x, grad_values, None, None, grad_bias, None


class _Compact(nn.Module):
    """The tensors of a compact layer."""

    values: nn.Parameter
    places: Tensor
    patterns: Tensor | None

    def __init__(self, dense: nn.Conv2d | nn.Linear, layout: Layout, kept: int) -> None:
        super().__init__()
        self.layout = layout
        weight = dense.weight
        values = torch.zeros(layout.values_shape(kept), dtype=weight.dtype, device=weight.device)
        self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        self.bias = dense.bias
        self.register_buffer(PLACES, torch.zeros(kept, dtype=layout.place_dtype, device=weight.device))
        ids = torch.zeros(kept, dtype=torch.uint8, device=weight.device) if layout.has_patterns else None
        self.register_buffer(PATTERN_IDS, ids)

    def dense_weight(self) -> Tensor:
        """The weight as a dense tensor."""
        return self.layout.scattered(self.values, self.places, self.patterns)

    def extra_repr(self) -> str:
        return f"{self.layout.scheme}, {len(self.places)} of {self.layout.units} units of {self.layout.shape}"


@final
class SparseConv2d(_Compact):
    """A two-dimensional convolution that holds `kept` units of its weight.

    Its parameter `values` has shape (kept, elements of a unit, 1, 1); its buffer `places` says which units they are, in
    ascending order and each once, and `patterns` of which pattern.
    """

    def __init__(self, dense: nn.Conv2d, layout: Layout, kept: int) -> None:
        """The layer in place of `dense`, whose bias it takes over; no unit has a place or a value yet.

        Args:
            dense: Without groups, padded with zeros by whole numbers.
            layout: Of its weight.
            kept: How many units it holds.
        """
        super().__init__(dense, layout, kept)
        self.form: _ConvForm = (dense.stride, dense.padding, dense.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, height, width) to (b, out, ...)."""
        if self.layout.scheme == "channel":
            return self._of_channels(x)
        arguments = (x, self.values, self.places, self.patterns, self.bias, self.layout, self.form)
        return cast(Tensor, _ConvOfValues.apply(*arguments))  # type: ignore[no-untyped-call]

    def _of_channels(self, x: Tensor) -> Tensor:
        """A convolution with the filters that are kept; the other channels are the bias, or zero."""
        filters = self.values.view(len(self.places), *self.layout.shape[1:])
        y = F.conv2d(x, filters, None, *self.form)
        rest = y.new_zeros(1) if self.bias is None else self.bias[:, None, None]
        whole = rest.expand(y.shape[0], self.layout.shape[0], *y.shape[2:])
        return whole.index_add(1, self.layout.numbers(self.places), y)


@final
class SparseLinear(_Compact):
    """A linear layer that holds `kept` units of its weight; see `SparseConv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        arguments = (rows, self.values, self.places, self.patterns, self.bias, self.layout)
        y = cast(Tensor, _LinearOfValues.apply(*arguments))  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.layout.shape[0])
