"""The operations on integers, forward and backward, in tensors that torch can compute with.

Values are int8 between operations. Inside one they are float32 tensors that hold integers: as long as every partial sum
stays below 2^24 such sums are exact, and longer ones are cut into pieces whose sums are added as int32. So results are
those of integer arithmetic, bit for bit. The multiplication by the effective scale and the rounding to the nearest even
integer are in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.models.quantised.graph import Add, Conv, MaxPool, Pad, Subsample

__all__ = [
    "LEAST",
    "MOST",
    "add_backward",
    "add_forward",
    "bits_of",
    "conv_forward",
    "input_gradient",
    "max_pool_backward",
    "max_pool_forward",
    "mean_forward",
    "pad_backward",
    "pad_forward",
    "rounded",
    "subsample_backward",
    "subsample_forward",
    "unpacked",
    "weight_gradient",
]

LEAST, MOST = -128, 127
_EXACT = 2**24  # float32 holds all integers up to here
_LARGEST_TERM = MOST * (MOST - LEAST)  # of a weight and a value less its zero point


def rounded(values: Tensor) -> Tensor:
    """Float values rounded to the nearest int8; they are changed."""
    return values.round_().clamp_(LEAST, MOST).to(torch.int8)


def bits_of(mask: Tensor) -> Tensor:
    """A bool tensor as bytes of eight, filled up with zeros; shape (ceil(elements / 8),)."""
    flat = F.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return torch.sum(flat << _places(mask), dim=1, dtype=torch.uint8)


def unpacked(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """What `bits_of` packed, as uint8 of 0 and 1."""
    bits = (packed.unsqueeze(1) >> _places(packed)).bitwise_and_(1)
    return bits.view(-1)[: torch.Size(shape).numel()].view(shape)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _requantised(values: Tensor, zero: Tensor, *, masked: bool) -> tuple[Tensor, Tensor | None]:
    """Scaled values moved to the output's zero point, rounded and clamped; and where they were inside, as bits."""
    values = values.round_().add_(zero)
    inside = bits_of((values >= LEAST).logical_and_(values <= MOST)) if masked else None
    return values.clamp_(LEAST, MOST).to(torch.int8), inside


def conv_forward(
    conv: Conv, x: Tensor, tensors: tuple[Tensor, Tensor], scaling: tuple[Tensor, Tensor, Tensor], *, masked: bool
) -> tuple[Tensor, Tensor | None]:
    """One convolution: clamp(round((conv(x - zx, W) + b) e) + zy).

    Args:
        conv: Its geometry.
        x: int8, (b, c, h, w), or (b, c) for a linear layer.
        tensors: Weights, of `conv.weight_shape`, and biases, (output channels,): integers as float32.
        scaling: Effective scale e of each output channel; zero points of input and output.
        masked: Whether the mask is wanted.

    Returns:
        int8 output, and one bit for each output that was not clamped.
    """
    weight, bias = tensors
    scale, zero_in, zero_out = scaling
    flat = x.dim() == 2
    centred = (x.view(*x.shape, 1, 1) if flat else x).float().sub_(zero_in)
    span = max(1, _EXACT // (_LARGEST_TERM * conv.weight_shape[2] * conv.weight_shape[3]))
    if conv.weight_shape[1] <= span:
        acc = _convolved(conv, centred, weight).add_(_by_channel(bias))
    else:
        whole = _by_channel(bias).to(torch.int32)
        for first in range(0, conv.weight_shape[1], span):
            piece = slice(first, first + span)
            whole = whole + _convolved(conv, centred[:, piece], weight[:, piece]).to(torch.int32)
        acc = whole.float()
    y, mask = _requantised(acc.mul_(_by_channel(scale)), zero_out, masked=masked)
    return y.flatten(1) if flat else y, mask


def _convolved(conv: Conv, x: Tensor, weight: Tensor) -> Tensor:
    groups = weight.shape[0] if conv.depthwise else 1
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, groups)


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def weight_gradient(conv: Conv, x: Tensor, zero: Tensor, g_acc: Tensor, channels: Tensor | None) -> Tensor:
    """Correlation of the input with the gradient of the sums, for the input channels that are trained.

    Args:
        conv: Its geometry.
        x: int8 input, of those channels alone.
        zero: Its zero point.
        g_acc: (b, output channels, h, w).
        channels: Their numbers; None stands for all.
    """
    kept = x.shape[1]
    if conv.depthwise and channels is not None:
        g_acc = g_acc.index_select(1, channels)
    centred = (x.view(*x.shape, 1, 1) if x.dim() == 2 else x).float().sub_(zero)
    shape_alone = g_acc.new_empty(1).expand(conv.part_shape(kept))  # its values are not read
    _, gradient, _ = torch.ops.aten.convolution_backward(
        g_acc,
        centred,
        shape_alone,
        None,
        conv.stride,
        conv.padding,
        conv.dilation,
        False,
        [0, 0],
        kept if conv.depthwise else 1,
        [False, True, False],
    )
    assert isinstance(gradient, Tensor)
    return gradient


def input_gradient(conv: Conv, shape: tuple[int, ...], weight: Tensor, g_acc: Tensor) -> Tensor:
    """The transposed convolution, for an input of this shape (of one sample)."""
    size = shape[1:] if len(shape) == 3 else (1, 1)
    geometry = zip(size, g_acc.shape[2:], weight.shape[2:], conv.stride, conv.padding, conv.dilation, strict=True)
    rest = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in geometry]
    groups = weight.shape[0] if conv.depthwise else 1
    g = F.conv_transpose2d(g_acc, weight, None, conv.stride, conv.padding, rest, groups, conv.dilation)
    return g.flatten(1) if len(shape) == 1 else g


def add_forward(
    op: Add, xs: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor, Tensor], zeros: Sequence[Tensor], *, masked: bool
) -> tuple[Tensor, Tensor | None]:
    """clamp(round(((x1 - z1) s1 + (x2 - z2) s2) / sy) + zy), and its mask where the sum has an activation."""
    terms = [x.float().sub_(zero).mul_(scale) for x, zero, scale in zip(xs, zeros, scales, strict=False)]
    total = terms[0].add_(terms[1]).div_(scales[2])
    return _requantised(total, zeros[2], masked=masked and op.top is not None)


def add_backward(g: Tensor, scales: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of both terms."""
    return g * (scales[0] / scales[2]), g * (scales[1] / scales[2])


def _windows(op: MaxPool, x: Tensor) -> Iterator[Tensor]:
    """For each place in the window what all windows have there, as views of the padded input."""
    height, width = op.shape[1:]
    for i in range(op.kernel[0]):
        for j in range(op.kernel[1]):
            rows = slice(i, i + op.stride[0] * (height - 1) + 1, op.stride[0])
            yield x[:, :, rows, slice(j, j + op.stride[1] * (width - 1) + 1, op.stride[1])]


def max_pool_forward(op: MaxPool, x: Tensor, *, masked: bool) -> tuple[Tensor, Tensor | None]:
    """The largest of each window, and its place there as one byte."""
    if any(op.padding):
        x = F.pad(x, (op.padding[1], op.padding[1], op.padding[0], op.padding[0]), value=LEAST)
    places = _windows(op, x)
    largest = next(places).clone()
    chosen = torch.zeros_like(largest, dtype=torch.uint8) if masked else None
    for place, values in enumerate(places, start=1):
        if chosen is not None:
            chosen = chosen.masked_fill(values > largest, place)
        largest = torch.maximum(largest, values)
    return largest, chosen


def max_pool_backward(op: MaxPool, shape: tuple[int, ...], g: Tensor, chosen: Tensor) -> Tensor:
    """Each window's gradient goes to where its largest was; `shape` is that of one sample's input."""
    up, left = op.padding
    g_x = g.new_zeros(g.shape[0], shape[0], shape[1] + 2 * up, shape[2] + 2 * left)
    for place, values in enumerate(_windows(op, g_x)):
        values.add_(g * (chosen == place))
    return g_x[:, :, up : up + shape[1], left : left + shape[2]]


def mean_forward(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rounded mean over pixels; (b, *shape)."""
    return rounded(x.float().mean(dim=(2, 3))).view(-1, *shape)


def subsample_forward(op: Subsample, x: Tensor) -> Tensor:
    """Every so-many-th row and column, as a tensor of its own."""
    return x[:, :, :: op.step[0], :: op.step[1]].contiguous()


def subsample_backward(op: Subsample, shape: tuple[int, ...], g: Tensor) -> Tensor:
    """Zero where nothing was taken."""
    g_x = g.new_zeros(g.shape[0], *shape)
    g_x[:, :, :: op.step[0], :: op.step[1]].copy_(g)
    return g_x


def pad_forward(op: Pad, x: Tensor, zero: Tensor) -> Tensor:
    """New channels hold the zero point, which stands for 0."""
    b, _, height, width = x.shape
    before, after = (zero.to(torch.int8).expand(b, n, height, width) for n in (op.before, op.after))
    return torch.cat([before, x, after], dim=1)


def pad_backward(op: Pad, g: Tensor) -> Tensor:
    """That of the channels that were there."""
    return g[:, op.before : g.shape[1] - op.after]
