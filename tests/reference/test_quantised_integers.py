"""The quantised graph against plain NumPy in int32: the same integers, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedhybrid.models import build_model
from fedhybrid.models.quantised import (
    Add,
    Conv,
    Flatten,
    Input,
    MaxPool,
    Mean,
    Operation,
    Pad,
    QuantisedConv,
    QuantisedNet,
    Subsample,
    quantise,
)

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("cnn", {"width": 0.25}),
    "cnn with batch norm": ("cnn", {"width": 0.25, "norm": "batch"}),
    "long sums": ("cnn", {"width": 2.0}),  # 64 x 9 terms can exceed 2^24
    "resnet18": ("resnet18", {"width": 0.07}),
    "resnet20": ("resnet20", {"width": 0.25}),
    "mobilenet_v2": ("mobilenet_v2", {"width": 0.1}),
}


def made(name: str, samples: int = 2) -> tuple[nn.Module, QuantisedNet, Tensor]:
    """A network with running statistics, its quantised form and inputs."""
    kind, options = NETWORKS[name]
    model = build_model(kind, input_shape=(3, 16, 16), classes=5, seed=3, options=options)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, 16, 16, generator=generator)
    for _ in range(10):
        model(torch.randn(8, 3, 16, 16, generator=generator))
    model.eval()
    return model, quantise(model, x), x


def clamped(values: Any, zero: Any) -> Any:
    return np.clip(np.round(values) + zero, -128, 127).astype(np.int8)


def conv_sums(op: Conv, x: Any, weight: Any) -> Any:
    """Sums of products in int32, filter place by filter place."""
    (up, left), (down, right), (dy, dx) = op.padding, op.stride, op.dilation
    x = np.pad(x, ((0, 0), (0, 0), (up, up), (left, left)))
    height, width = op.shape[1:]
    acc = np.zeros((len(x), *op.shape), dtype=np.int32)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            rows = slice(i * dy, i * dy + down * (height - 1) + 1, down)
            seen = x[:, :, rows, slice(j * dx, j * dx + right * (width - 1) + 1, right)]
            if op.depthwise:
                acc += seen * weight[:, 0, i, j][None, :, None, None]
            else:
                acc += np.einsum("bchw,oc->bohw", seen, weight[:, :, i, j], dtype=np.int32)
    return acc


def expected(net: QuantisedNet, x: Tensor) -> list[Any]:
    """What every operation gives, by NumPy alone."""
    ops = net.graph.operations
    scales, zeros = net.scales.numpy(), net.zeros.numpy()
    found: list[Any] = []
    for op in ops:
        found.append(_one(net, op, found, x, (scales, zeros)))
    return found


def _one(net: QuantisedNet, op: Operation, found: list[Any], x: Tensor, tables: tuple[Any, Any]) -> Any:
    (scales, zeros), ops = tables, net.graph.operations
    read = [found[source] for source in op.sources]
    s = [scales[ops[source].site] for source in op.sources]
    z = [np.int32(zeros[ops[source].site]) for source in op.sources]
    match op:
        case Input():
            return clamped(x.numpy() / scales[0], zeros[0])
        case Conv():
            layer = net.convs[op.number]
            assert isinstance(layer, QuantisedConv)
            weight = layer.weight.detach().numpy().astype(np.int32)
            bias = layer.bias.detach().numpy().astype(np.int32)
            acc = conv_sums(op, read[0].astype(np.int32) - z[0], weight) + bias[None, :, None, None]
            e = layer.weight_scale.numpy() * s[0] / scales[op.site]
            return clamped(acc.astype(np.float32) * e[None, :, None, None], zeros[op.site])
        case Add():
            terms = [(r.astype(np.int32) - zi).astype(np.float32) * si for r, zi, si in zip(read, z, s, strict=True)]
            return clamped((terms[0] + terms[1]) / scales[op.site], zeros[op.site])
        case MaxPool():
            b, c, h, w = read[0].shape
            return read[0].reshape(b, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
        case Mean():
            total = read[0].astype(np.int32).sum(axis=(2, 3)).astype(np.float32)
            return clamped(total / np.float32(read[0].shape[2] * read[0].shape[3]), 0)
        case Subsample():
            return read[0][:, :, :: op.step[0], :: op.step[1]]
        case Pad():
            around = ((0, 0), (op.before, op.after), (0, 0), (0, 0))
            return np.pad(read[0], around, constant_values=np.int8(z[0]))
        case Flatten():
            return read[0].reshape(len(read[0]), -1)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("samples", [1, 3])
def test_integers_are_numpys(name: str, samples: int) -> None:
    _, net, x = made(name, samples)
    found = net.integers(x)
    for number, (own, reference) in enumerate(zip(found, expected(net, x), strict=True)):
        assert own.dtype == torch.int8
        assert np.array_equal(own.numpy(), reference), net.graph.operations[number]
    assert len({int(v) for v in found[-1].flatten()}) > 3, "not everything is clamped to one value"
    features = (found[-1].float() - net.zeros[net.graph.operations[-1].site]) * net.scales[
        net.graph.operations[-1].site
    ]
    assert torch.equal(net(x), net.head(features.flatten(1)))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_scores_are_close_to_the_float_networks(name: str) -> None:
    model, net, x = made(name, 8)
    with torch.no_grad():
        exact, own = model(x), net(x)
    assert float((own - exact).norm() / exact.norm()) < 0.05


def test_one_convolution_is_within_one_step_of_float() -> None:
    """Of float on the rounded weights and inputs everywhere (half a step), of float itself nearly everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 6, 3, padding=1)
        model = nn.Sequential(conv, nn.Flatten(), nn.Linear(6 * 64, 2))
        x = torch.randn(4, 4, 8, 8)
    net = quantise(model, x)
    integers = net.integers(x)
    into, own = ((integers[n].float() - net.zeros[n]) * net.scales[n] for n in (0, 1))
    layer = net.convs[0]
    assert isinstance(layer, QuantisedConv)
    scale = layer.weight_scale
    with torch.no_grad():
        rounded = nn.functional.conv2d(
            into, layer.weight * scale.view(-1, 1, 1, 1), layer.bias * scale * net.scales[0], padding=1
        )
        steps = ((own - conv(x)) / net.scales[1]).abs()
        inside = integers[1].int().abs() < 127
        assert float(((own - rounded) / net.scales[1]).abs()[inside].max()) < 0.51
    assert float((steps <= 1).float().mean()) > 0.95
    assert float(steps.max()) < 2
