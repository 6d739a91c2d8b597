"""Real operators of each kind, at sizes that training steps have, with the work that each of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedhybrid.opwork import OpWork

__all__ = ["Sample", "samples", "tiny_calls"]

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One call to time. `make` builds its tensors, so that only one sample's tensors exist at a time."""

    kind: str
    name: str
    make: Callable[[], tuple[Callable[[], Any], OpWork]]


# Batch, channels in, channels out, side of the image, kernel: layers of small networks, narrow to wide.
_CONVS = (
    (32, 16, 16, 32, 3),
    (32, 32, 32, 16, 3),
    (32, 64, 64, 8, 3),
    (16, 64, 128, 16, 1),
    (8, 128, 128, 16, 3),
    (8, 512, 512, 4, 3),
)
_DEPTHWISE = ((32, 96, 16), (32, 144, 8), (16, 64, 32))
_PRODUCTS = ((2048, 192, 576), (2048, 768, 192), (192, 2048, 192), (512, 512, 512))
_ATTENTION = (16, 3, 65, 64)  # batch, heads, tokens, dimensions of a head
_MAPS = ((32, 16, 32, 32), (32, 64, 16, 16), (32, 64, 8, 8))
_ROWS = ((2080, 192), (512, 768))
_POOL = ([2, 2], [2, 2])  # kernel and stride
_PARAMETERS = ((64, 64, 3, 3), (768, 192), (512, 512, 3, 3))


def samples() -> Iterator[Sample]:
    """All samples, kind by kind."""
    for shape in _CONVS:
        yield _sample("conv", f"convolution {shape}", partial(_convolution, *shape, groups=1))
        yield _sample("conv", f"convolution backward {shape}", partial(_convolution_backward, *shape, groups=1))
    for batch, channels, side in _DEPTHWISE:
        deep = (batch, channels, channels, side, 3)
        yield _sample("depthwise", f"depthwise {deep}", partial(_convolution, *deep, groups=channels))
        yield _sample("depthwise", f"depthwise backward {deep}", partial(_convolution_backward, *deep, groups=channels))
    for rows, inner, columns in _PRODUCTS:
        yield _sample("matmul", f"mm {rows, inner, columns}", partial(_product, rows, inner, columns))
    yield _sample("matmul", "attention", _attention)
    for maps in _MAPS:
        yield _sample("norm", f"batch norm {maps}", partial(_batch_norm, maps))
        yield _sample("norm", f"batch norm backward {maps}", partial(_batch_norm_backward, maps))
        yield _sample("pool", f"max pool {maps}", partial(_on_noise, "pool", aten.max_pool2d_with_indices, maps, _POOL))
        yield _sample("pool", f"average pool {maps}", partial(_on_noise, "pool", aten.avg_pool2d, maps, _POOL))
        yield _sample("reduce", f"sum {maps}", partial(_on_noise, "reduce", aten.sum.dim_IntList, maps, ([0, 2, 3],)))
        yield _sample("reduce", f"mean {maps}", partial(_on_noise, "reduce", aten.mean.dim, maps, ([2, 3],)))
        yield _sample("copy", f"clone {maps}", partial(_on_noise, "copy", aten.clone, maps))
        yield _sample("random", f"bernoulli {maps}", partial(_on_noise, "random", aten.bernoulli.p, maps, (0.9,)))
        yield from _elementwise(maps)
    for lines in _ROWS:
        yield _sample("norm", f"layer norm {lines}", partial(_layer_norm, lines))
        yield _sample("reduce", f"softmax {lines}", partial(_on_noise, "reduce", aten._softmax, lines, (1, False)))
        yield _sample("copy", f"cat {lines}", partial(_concatenation, lines))
        yield from _elementwise(lines)
    for numbers in _PARAMETERS:
        yield _sample("optimizer", f"sgd {numbers}", partial(_momentum_step, numbers))


def tiny_calls() -> list[Callable[[], Any]]:
    """Calls that do next to nothing: what they take is what any call takes."""
    x, y = torch.ones(4), torch.ones(4)
    return [
        lambda: aten.add.Tensor(x, y),
        lambda: aten.relu.default(x),
        lambda: aten.mul.Tensor(x, y),
        lambda: aten.sum.default(x),
        lambda: aten.clone.default(x),
    ]


def _sample(kind: str, name: str, make: Callable[[], tuple[Callable[[], Any], OpWork]]) -> Sample:
    return Sample(kind=kind, name=name, make=make)


def _n(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape)


def _call(
    kind: str, operator: Callable[..., Any], *args: Any, flops: float | None = None
) -> tuple[Callable[[], Any], OpWork]:
    """The call and its work: bytes of tensors in and out, FLOPs as given or one for each element of the largest."""
    given = list(_flat(args))
    made = [t for t in _flat(operator(*args)) if not any(t is g for g in given)]
    moved_bytes = sum(t.numel() * t.element_size() for t in (*given, *made))
    largest = float(max(t.numel() for t in (*given, *made)))
    return lambda: operator(*args), OpWork(kind, largest if flops is None else flops, moved_bytes)


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)


def _kind_of(groups: int) -> str:
    return "depthwise" if groups > 1 else "conv"


def _convolution(
    batch: int, inner: int, outer: int, side: int, kernel: int, *, groups: int
) -> tuple[Callable[[], Any], OpWork]:
    x, w = _n((batch, inner, side, side)), _n((outer, inner // groups, kernel, kernel))
    flops = 2.0 * batch * outer * side * side * w.numel() / outer
    args = (x, w, None, [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], groups)
    return _call(_kind_of(groups), aten.convolution.default, *args, flops=flops)


def _convolution_backward(
    batch: int, inner: int, outer: int, side: int, kernel: int, *, groups: int
) -> tuple[Callable[[], Any], OpWork]:
    x, w = _n((batch, inner, side, side)), _n((outer, inner // groups, kernel, kernel))
    grad = _n((batch, outer, side, side))
    flops = 2 * 2.0 * grad.numel() * w.numel() / outer
    form = ([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], groups, [True, True, False])
    return _call(_kind_of(groups), aten.convolution_backward.default, grad, x, w, None, *form, flops=flops)


def _product(rows: int, inner: int, columns: int) -> tuple[Callable[[], Any], OpWork]:
    flops = 2.0 * rows * inner * columns
    return _call("matmul", aten.mm.default, _n((rows, inner)), _n((inner, columns)), flops=flops)


def _attention() -> tuple[Callable[[], Any], OpWork]:
    batch, heads, tokens, width = _ATTENTION
    q, k, v = (_n((batch, heads, tokens, width)) for _ in range(3))
    operator = aten._scaled_dot_product_flash_attention_for_cpu.default
    return _call("matmul", operator, q, k, v, flops=4.0 * q.numel() * tokens)


def _batch_norm(shape: tuple[int, ...]) -> tuple[Callable[[], Any], OpWork]:
    vectors = [torch.ones(shape[1]) for _ in range(4)]
    return _call("norm", aten.native_batch_norm.default, _n(shape), *vectors, True, 0.1, 1e-5)


def _batch_norm_backward(shape: tuple[int, ...]) -> tuple[Callable[[], Any], OpWork]:
    w, mean, variance, saved_mean, saved_invstd = (torch.ones(shape[1]) for _ in range(5))
    args = (_n(shape), _n(shape), w, mean, variance, saved_mean, saved_invstd, True, 1e-5, [True, True, True])
    return _call("norm", aten.native_batch_norm_backward.default, *args)


def _layer_norm(shape: tuple[int, int]) -> tuple[Callable[[], Any], OpWork]:
    w, b = torch.ones(shape[1]), torch.zeros(shape[1])
    return _call("norm", aten.native_layer_norm.default, _n(shape), [shape[1]], w, b, 1e-5)


def _concatenation(shape: tuple[int, int]) -> tuple[Callable[[], Any], OpWork]:
    return _call("copy", aten.cat.default, [_n(shape), _n(shape)], 1)


def _elementwise(shape: tuple[int, ...]) -> Iterator[Sample]:
    for name, operator in (("relu", aten.relu), ("gelu", aten.gelu)):
        yield _sample("elementwise", f"{name} {shape}", partial(_on_noise, "elementwise", operator, shape))
    yield _sample("elementwise", f"add {shape}", partial(_on_two, aten.add.Tensor, shape))
    yield _sample("elementwise", f"relu backward {shape}", partial(_on_two, aten.threshold_backward, shape, (0,)))


def _on_noise(
    kind: str, operator: Callable[..., Any], shape: tuple[int, ...], options: tuple[Any, ...] = ()
) -> tuple[Callable[[], Any], OpWork]:
    return _call(kind, operator, _n(shape), *options)


def _on_two(
    operator: Callable[..., Any], shape: tuple[int, ...], options: tuple[Any, ...] = ()
) -> tuple[Callable[[], Any], OpWork]:
    return _call("elementwise", operator, _n(shape), _n(shape), *options)


def _momentum_step(shape: tuple[int, ...]) -> tuple[Callable[[], Any], OpWork]:
    """SGD with momentum as torch.optim's default form does it: two operators, three tensors."""
    param, grad, momentum = _n(shape), _n(shape), torch.zeros(shape)

    def step() -> None:
        momentum.mul_(0.9).add_(grad)
        param.add_(momentum, alpha=-1e-4)

    nbytes = param.numel() * param.element_size()
    return step, OpWork("optimizer", 4.0 * param.numel(), 5 * nbytes)
