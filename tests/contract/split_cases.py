"""Calls of every operator of `SPLITS`, in the layouts in which captured steps contain them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["CALLS", "Call"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
aten = torch.ops.aten
MASK = [True, True, True]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def layouts(*shape: int) -> Iterator[Tensor]:
    """Contiguous, and with another dimension innermost or outermost in memory."""
    x = normal(*shape)
    yield x
    if len(shape) == 4:
        yield x.contiguous(memory_format=torch.channels_last)
    yield x.transpose(0, 1).contiguous().transpose(0, 1)


def convolution(scale: int) -> Iterator[Call]:
    for x in layouts(8, 8 * scale, 16, 16):
        channels = x.shape[1]
        for weight, groups, padding in (
            (normal(16, channels, 3, 3), 1, 1),
            (normal(channels, 1, 3, 3), channels, 1),
            (normal(16, channels, 1, 1), 1, 0),
        ):
            bias = normal(weight.shape[0]) if groups == 1 else None
            yield (x, weight, bias, [1, 1], [padding, padding], [1, 1], False, [0, 0], groups), {}
    yield (normal(8, 8 * scale, 8, 8), normal(8 * scale, 6, 2, 2), None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1), {}
    yield (normal(8, 8 * scale, 64), normal(6, 8 * scale, 5), normal(6), [1], [2], [1], False, [0], 1), {}


def convolution_backward(scale: int) -> Iterator[Call]:
    for (x, weight, bias, *rest), _ in convolution(scale):
        grad = aten.convolution.default(x, weight, bias, *rest)
        for mask in ([True, True, bias is not None], [False, True, False], [True, False, False]):
            yield (grad, x, weight, [weight.shape[0]] if mask[2] else None, *rest, mask), {}


def batch_norm(scale: int) -> Iterator[Call]:
    for x in (*layouts(6, 24 * scale, 12, 12), normal(16, 24 * scale)):
        channels = x.shape[1]
        weight, bias = normal(channels), normal(channels)
        yield (x, weight, bias, normal(channels), normal(channels).abs(), True, 0.1, 1e-5), {}
        yield (x, None, None, None, None, True, 0.1, 1e-5), {}
        yield (x, weight, bias, normal(channels), normal(channels).abs(), False, 0.1, 1e-5), {}
    half = normal(6, 24 * scale, 12, 12, dtype=torch.bfloat16)
    weight, mean, var = normal(24 * scale), normal(24 * scale), normal(24 * scale).abs()
    for affine in (weight, weight.bfloat16(), None):
        of_type = torch.float32 if affine is None else affine.dtype
        yield (half, affine, affine, mean.to(of_type), var.to(of_type), True, 0.1, 1e-5), {}
        yield (half, affine, affine, None, None, True, 0.1, 1e-5), {}


def batch_norm_backward(scale: int) -> Iterator[Call]:
    for (x, weight, bias, mean, var, training, momentum, eps), _ in batch_norm(scale):
        kept = None if mean is None else mean.clone(), None if var is None else var.clone()
        out, save_mean, save_invstd = aten.native_batch_norm.default(x, weight, bias, *kept, training, momentum, eps)
        yield (normal(*out.shape, dtype=x.dtype), x, weight, mean, var, save_mean, save_invstd, training, eps, MASK), {}
        yield (out, x, weight, mean, var, save_mean, save_invstd, training, eps, [True, False, False]), {}


def group_norm(scale: int) -> Iterator[Call]:
    plain = normal(6, 8 * scale, 12, 12)  # F.group_norm gives it no other layouts than these two
    for x in (plain, plain.contiguous(memory_format=torch.channels_last)):
        for weight, bias in ((normal(8 * scale), normal(8 * scale)), (None, None)):
            yield (x, weight, bias, 6, 8 * scale, 144, 4, 1e-5), {}


def group_norm_backward(scale: int) -> Iterator[Call]:
    for (x, weight, _, batch, channels, pixels, groups, eps), _kw in group_norm(scale):
        out, mean, rstd = aten.native_group_norm.default(x, weight, None, batch, channels, pixels, groups, eps)
        yield (out, x, mean, rstd, weight, batch, channels, pixels, groups, [True] + 2 * [weight is not None]), {}


def layer_norm(scale: int) -> Iterator[Call]:
    for x in layouts(8, 16 * scale, 48):
        yield (x, [48], normal(48), normal(48), 1e-5), {}
        yield (x, list(x.shape[1:]), None, None, 1e-5), {}


def layer_norm_backward(scale: int) -> Iterator[Call]:
    for (x, shape, weight, bias, eps), _ in layer_norm(scale):
        out, mean, rstd = aten.native_layer_norm.default(x, shape, weight, bias, eps)
        yield (out, x, shape, mean, rstd, weight, bias, [True] + 2 * [weight is not None]), {}


def softmax(scale: int) -> Iterator[Call]:
    for x in layouts(8, 16 * scale, 40):
        yield (x, -1, False), {}
        yield (x, 2, False), {}


def safe_softmax(scale: int) -> Iterator[Call]:
    for (x, dim, _), _kw in softmax(scale):
        yield (x, dim), {}


def roll(scale: int) -> Iterator[Call]:
    for x in layouts(4, 8 * scale, 8, 8):
        yield (x, [-2, -2], [1, 2]), {}
        yield (x, [3, 1], [-1, -2]), {}


def softmax_backward(scale: int) -> Iterator[Call]:
    for (x, dim, _), _kw in softmax(scale):
        yield (normal(*x.shape), aten._softmax.default(x, dim, False), dim, torch.float32), {}


def log_softmax_backward(scale: int) -> Iterator[Call]:
    for (x, dim, _), _kw in softmax(scale):
        yield (normal(*x.shape), aten._log_softmax.default(x, dim, False), dim, torch.float32), {}


def attention(scale: int) -> Iterator[Call]:
    heads_inside = [normal(4, 32 * scale, 2, 16).transpose(1, 2) for _ in range(3)]
    plain = [normal(4, 2, 32 * scale, 16) for _ in range(3)]
    sequence_first = [normal(32 * scale, 4, 2, 16).permute(1, 2, 0, 3) for _ in range(3)]
    length = 32 * scale
    for qkv in (heads_inside, plain, sequence_first):
        yield (*qkv,), {}
        yield (*qkv, 0.0, True), {}
        yield (*qkv,), {"attn_mask": normal(4, 1, length, length), "scale": 0.3}
        yield (*qkv,), {"attn_mask": normal(1, 1, length, length)}
        yield (*qkv,), {"attn_mask": normal(length, length)}


def attention_backward(scale: int) -> Iterator[Call]:
    for args, kwargs in attention(scale):
        out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu.default(*args, **kwargs)
        q, k, v, *rest = args
        grad = normal(4, out.shape[2], 2, 16).transpose(1, 2)
        yield (grad, q, k, v, out, logsumexp, *(rest or (0.0, False))), kwargs


def mm(scale: int) -> Iterator[Call]:
    yield (normal(96 * scale, 24), normal(24, 40)), {}
    yield (normal(96 * scale, 24), normal(24, 24).t()), {}
    yield (normal(24, 96 * scale).t(), normal(24, 40)), {}
    yield (normal(96 * scale, 24, dtype=torch.bfloat16), normal(24, 24, dtype=torch.bfloat16)), {}


def addmm(scale: int) -> Iterator[Call]:
    for args, _ in mm(scale):
        columns, dtype = args[1].shape[1], args[0].dtype
        yield (normal(columns, dtype=dtype), *args), {}
        yield (normal(96 * scale, columns, dtype=dtype), *args), {"beta": 2, "alpha": 0.5}


def upsample_bilinear(scale: int) -> Iterator[Call]:
    for x in layouts(4, 8 * scale, 8, 8):
        yield (x, [16, 16], False, 2.0, 2.0), {}
        yield (x, [13, 15], True), {}


def upsample_bilinear_backward(scale: int) -> Iterator[Call]:
    for grad in layouts(4, 8 * scale, 16, 16):
        yield (grad, [16, 16], [4, 8 * scale, 8, 8], False, 2.0, 2.0), {}


def upsample_nearest(scale: int) -> Iterator[Call]:
    for x in layouts(4, 8 * scale, 8, 8):
        yield (x, [16, 16], 2.0, 2.0), {}


def upsample_nearest_backward(scale: int) -> Iterator[Call]:
    for grad in layouts(4, 8 * scale, 16, 16):
        yield (grad, [16, 16], [4, 8 * scale, 8, 8], 2.0, 2.0), {}


# Operator -> its calls; the argument makes them larger.
CALLS: dict[str, Callable[[int], Iterator[Call]]] = {
    "aten._log_softmax.default": softmax,
    "aten._log_softmax_backward_data.default": log_softmax_backward,
    "aten._safe_softmax.default": safe_softmax,
    "aten._scaled_dot_product_flash_attention_for_cpu.default": attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": attention_backward,
    "aten._softmax.default": softmax,
    "aten._softmax_backward_data.default": softmax_backward,
    "aten.addmm.default": addmm,
    "aten.convolution.default": convolution,
    "aten.convolution_backward.default": convolution_backward,
    "aten.mm.default": mm,
    "aten.native_batch_norm.default": batch_norm,
    "aten.native_batch_norm_backward.default": batch_norm_backward,
    "aten.native_group_norm.default": group_norm,
    "aten.native_group_norm_backward.default": group_norm_backward,
    "aten.native_layer_norm.default": layer_norm,
    "aten.native_layer_norm_backward.default": layer_norm_backward,
    "aten.roll.default": roll,
    "aten.upsample_bilinear2d.default": upsample_bilinear,
    "aten.upsample_bilinear2d_backward.default": upsample_bilinear_backward,
    "aten.upsample_nearest2d.default": upsample_nearest,
    "aten.upsample_nearest2d_backward.default": upsample_nearest_backward,
}
