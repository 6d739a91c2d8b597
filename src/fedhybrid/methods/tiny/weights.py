"""A scheme's submodel, its tensors made from the whole network's, and what has been trained put back."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fedhybrid.methods.tiny.rounding import IntegerSteps, WithinGrid, rounded_at_random
from fedhybrid.methods.tiny.schemes import parse_scheme
from fedhybrid.models.quantised import QuantisedNet
from fedhybrid.protocols import Submodel
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors

__all__ = ["for_device", "for_server", "submodel_of", "trained_part"]

_LAYER = re.compile(r"convs\.(\d+)\.(\w+)")
_GRID = 127


def submodel_of(whole: Submodel, name: str, *, integer: bool) -> Submodel:
    """The network with what the scheme trains as parameters, and all else as integers.

    Args:
        whole: Its module is a `QuantisedNet`.
        name: Of the scheme.
        integer: Trained weights are integers, too: two bytes each (bfloat16, which holds all of int8; torch has no
            gradients of smaller types that do), and steps are rounded at random.

    Raises:
        ConfigError: Integers, and an optimizer that holds state.
    """
    net = whole.module
    assert isinstance(net, QuantisedNet), "made by quantise()"
    convs = net.graph.convs
    updates = parse_scheme(name, len(convs)).updates([conv.channels_in for conv in convs])
    dtype = torch.bfloat16 if integer else torch.float32
    part = QuantisedNet(net.graph, updates, qas=net.qas, dtype=dtype).train(net.training)
    layered = [n for n, _ in part.named_parameters() if _LAYER.match(n)]
    biases = [n for n in layered if n.endswith("bias")]
    on_grid = tuple((n, _GRID) for n in layered if n not in biases)
    optimizer = whole.optimizer
    if integer:
        optimizer = IntegerSteps(base=optimizer, limits=(*on_grid, *((n, None) for n in biases)))
    elif on_grid:
        optimizer = WithinGrid(base=optimizer, limits=on_grid)
    return Submodel(module=part, loss_fn=whole.loss_fn, optimizer=optimizer)


def _layers(weights: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if place := _LAYER.fullmatch(name):
            found.setdefault(int(place[1]), {})[place[2]] = tensor
    return found


def _channel_dim(weight: Tensor, channels_in: int) -> int:
    """Where a layer's input channels are: of a depthwise one they are its filters."""
    return 0 if weight.shape[1] == 1 and weight.shape[0] == channels_in else 1


def for_device(weights: Mapping[str, Tensor], name: str, *, integer: bool = False, seed: int = 0) -> Tensors:
    """The tensors of a scheme's submodel, from those of the whole network.

    Args:
        weights: Of a `QuantisedNet` all of which is trained, with channel orders.
        name: Of the scheme.
        integer: See `submodel_of`; what is trained is rounded at random, so that a mean between two integers stays
            that mean on average.
        seed: Decides those draws.
    """
    layers = _layers(weights)
    channels_in = [len(layers[n]["channel_order"]) for n in range(len(layers))]
    updates = parse_scheme(name, len(layers)).updates(channels_in)
    made = {key: tensor for key, tensor in weights.items() if not _LAYER.fullmatch(key)}

    def trained(key: str, tensor: Tensor) -> Tensor:
        if not integer:
            return tensor.clone()
        bias = key.endswith("bias")
        own = derive_seed(seed, purpose=f"integers of {key}")
        values = rounded_at_random(tensor, own, None if bias else _GRID)
        return values if bias else values.to(torch.bfloat16)

    for number, update in enumerate(updates):
        layer, prefix = layers[number], f"convs.{number}."
        weight, count = layer["weight"], channels_in[number]
        made[prefix + "weight_scale"] = layer["weight_scale"]
        if update.channels == count:
            made[prefix + "weight"] = trained(prefix + "weight", weight)
        else:
            made[prefix + "weight_q"] = weight.round().clamp(-_GRID, _GRID).to(torch.int8)
        if 0 < update.channels < count:
            kept = layer["channel_order"][: update.channels].sort().values
            part = weight.index_select(_channel_dim(weight, count), kept)
            made |= {prefix + "kept": kept, prefix + "part": trained(prefix + "part", part)}
        if update.bias:
            made[prefix + "bias"] = trained(prefix + "bias", layer["bias"])
        else:
            made[prefix + "bias_q"] = layer["bias"].round().to(torch.int32)
    return made


def trained_part(tensors: Mapping[str, Tensor]) -> Tensors:
    """What is trained of a submodel's tensors, and so uploaded: compact, as the server knows which channels it is."""
    found = {}
    for name, tensor in tensors.items():
        place = _LAYER.fullmatch(name)
        if name.startswith("head.") or (place and place[2] in ("weight", "part", "bias")):
            found[name] = tensor
    return found


def for_server(trained: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """What submodels have trained, by the whole network's names and shapes; masks say where that is a part of a tensor.

    Weights are brought back to the grid's -127 to 127, beyond which a submodel computes as if they were there.

    Args:
        trained: What `trained_part` gave.
        whole: The whole network's tensors: shapes and channel orders are read.
    """
    weights: Tensors = {}
    masks: Tensors = {}
    for name, tensor in trained.items():
        place = _LAYER.fullmatch(name)
        within = tensor if place is None or place[2] == "bias" else tensor.clamp(-_GRID, _GRID)
        if place is None or place[2] != "part":
            weights[name] = within.to(whole[name].dtype)
            continue
        prefix = f"convs.{place[1]}."
        like, order = whole[prefix + "weight"], whole[prefix + "channel_order"]
        dim = _channel_dim(like, len(order))
        kept = order[: tensor.shape[dim]].sort().values
        weights[prefix + "weight"] = torch.zeros_like(like).index_copy_(dim, kept, within.to(like.dtype))
        masks[prefix + "weight"] = torch.zeros(like.shape, dtype=torch.bool).index_fill_(dim, kept, True)
    return weights, masks
