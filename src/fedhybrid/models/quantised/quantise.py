"""Post-training quantisation of a float network: batch norm folded, ranges of activations from a calibration batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedhybrid.models.quantised.arithmetic import LEAST, MOST
from fedhybrid.models.quantised.convert import FloatNetwork, read_network
from fedhybrid.models.quantised.graph import Add, Conv, Graph, Input, Operation
from fedhybrid.models.quantised.network import QuantisedConv, QuantisedNet

__all__ = ["quantise"]

_SMALLEST_SHARE = 1e-3  # of the layer's largest weight scale: a channel of (nearly) zeros must not have a scale of 0


def quantise(model: nn.Module, sample: Tensor, *, qas: bool = True, headroom: float = 1.0) -> QuantisedNet:
    """The int8 network of a trained float one; all of it can be trained.

    Weights: symmetric, a scale for each output channel, sw = max |W| / 127. Activations: one scale and zero point for a
    tensor, from its smallest and largest value on the sample, 0 included; a ReLU is the range's lower end, and what
    moves values without changing them (pooling, padding, reshaping) keeps the scale of its input. Biases are integers
    in units of sw sx. Shapes and names follow from the model and the sample's shape alone.

    Args:
        model: Ends in a linear layer; it is left as it is.
        sample: Inputs of a batch, (b, ...): what activations are calibrated on.
        qas: See `QuantisedNet`.
        headroom: Ranges of activations, but not of the input, are so many times what the sample shows: scales stay
            while training moves activations, and what is clamped passes no gradient on.

    Raises:
        ConfigError: A layer has no counterpart in integers.

    Source: J. Lin et al., "On-Device Training Under 256KB Memory", NeurIPS 2022, section 3.1; B. Jacob et al.,
    "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018.
    """
    network = read_network(model)
    with torch.no_grad():
        outputs = network.outputs(sample.float())
        return _made(network, outputs, qas=qas, headroom=headroom)


def _made(network: FloatNetwork, outputs: Sequence[Tensor], *, qas: bool, headroom: float) -> QuantisedNet:
    assert network.head is not None
    operations: list[Operation] = []
    ranges: list[tuple[Tensor, Tensor]] = []
    for op, output in zip(network.operations, outputs, strict=True):
        site = len(ranges) if isinstance(op, (Input, Conv, Add)) else operations[op.sources[0]].site
        if site == len(ranges):
            ranges.append(_range(output * (1.0 if isinstance(op, Input) else headroom)))
        operations.append(replace(op, shape=tuple(output.shape[1:]), site=site))
    graph = Graph(operations=tuple(operations), sites=len(ranges), classes=network.head.out_features)
    net = QuantisedNet(graph, qas=qas, ordered=True)
    net.scales.copy_(torch.stack([scale for scale, _ in ranges]))
    net.zeros.copy_(torch.stack([zero for _, zero in ranges]))
    for conv, layer, weight, bias in zip(graph.convs, net.convs, network.weights, network.biases, strict=True):
        assert isinstance(layer, QuantisedConv)
        largest = weight.abs().amax(dim=(1, 2, 3)) / MOST
        layer.weight_scale.copy_(largest.clamp(min=(largest.max() * _SMALLEST_SHARE).clamp(min=1e-12)))
        layer.weight.copy_((weight / layer.weight_scale.view(-1, 1, 1, 1)).round())
        into = net.scales[graph.operations[conv.sources[0]].site]
        layer.bias.copy_((bias / (layer.weight_scale * into)).round())
        norms = weight.square().sum(dim=(1, 2, 3) if conv.depthwise else (0, 2, 3))
        layer.channel_order.copy_(norms.argsort(descending=True, stable=True))
    net.head.load_state_dict(network.head.state_dict())
    return net.train()


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point that make int8 of these values; zero has a code of its own."""
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    scale = ((high - low) / (MOST - LEAST)).clamp(min=1e-12)
    return scale, (LEAST - (low / scale).round()).clamp(LEAST, MOST)
