"""A share of a network's channels: of every inner layer the first ones, so that narrow networks lie in wide ones.

Inputs of the first layer and outputs of the last stay. What is kept follows from the tree of modules: convolutions
(plain or depthwise), linear layers (also behind a flattened map), norms, embeddings, LSTMs, and learnt tokens of shape
(1, tokens, channels). Where a layer's outputs stand side by side in several groups that mean different things (heads of
attention, gates of an LSTM), each group keeps its own first share; a module says so in a method `narrow_groups()`.

The idea and the rounding, ceil(share * channels), are those of HeteroFL (`methods/heterofl.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.tree import tensors_of

__all__ = ["BATCH_NORMS", "CONVOLUTIONS", "Channels", "Kept", "KeptShares", "NarrowGroups", "kept_shares", "last_layer"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_GATES = 4  # of an LSTM


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of one dimension of a tensor.

    Attributes:
        size: How many indices.
        groups: In how many equal groups the dimension is taken apart; of each the first `size / groups` are kept.
    """

    size: int
    groups: int = 1

    def places(self, whole: int) -> Tensor:
        """The kept indices among `whole`, ascending."""
        every = torch.arange(whole)
        return every[every % (whole // self.groups) < self.size // self.groups]


KeptShares = dict[str, tuple[Kept, ...]]  # of each tensor, by its name, of each dimension


@runtime_checkable
class NarrowGroups(Protocol):
    """A module whose layers hold several things side by side."""

    def narrow_groups(self) -> Mapping[str, tuple[int, int]]:
        """For some of its linear layers, by their names in it: groups of their outputs, groups of their inputs."""
        ...


def kept_shares(model: nn.Module, rate: float) -> KeptShares:
    """What a narrower model keeps of each tensor.

    Args:
        model: The whole one.
        rate: The share of channels, above 0 and at most 1.

    Raises:
        ConfigError: The model has a layer of which it is not known what a share would be.
    """
    assert 0 < rate <= 1, rate
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if shared := sorted({*every} - {name for name, _ in model.named_parameters()}):
        raise ConfigError(
            f"a narrower model cannot be made: the model ({type(model).__name__}) has parameters under two names "
            f"({', '.join(shared)}); each layer needs its own"
        )
    channels, shares = Channels(model, rate), dict[str, tuple[Kept, ...]]()
    layers = [path for path, module in model.named_modules() if _is_layer(module)]
    if not layers:
        raise ConfigError(f"the model ({type(model).__name__}) has no layer that could be made narrower")
    groups = {
        f"{path}.{name}" if path else name: found
        for path, module in model.named_modules()
        if isinstance(module, NarrowGroups)
        for name, found in module.narrow_groups().items()
    }
    before = 0
    for path, module in model.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if not own:
            continue
        place = _Place(
            name=path or "the model",
            first=path == layers[0],
            last=path == layers[-1],
            before=before,
            groups=groups.get(path, (1, 1)),
        )
        kept = _kept_of(module, place, channels)
        shares |= {f"{path}.{name}" if path else name: kept[name] for name, _ in own}
        before = _outputs_of(module) or before
    return {name: shares[name] for name in tensors_of(model)}


def last_layer(model: nn.Module) -> str:
    """The path of the layer that gives the class scores.

    Raises:
        ConfigError: It is not a linear layer.
    """
    layers = [(path, module) for path, module in model.named_modules() if _is_layer(module)]
    path, last = layers[-1] if layers else ("", model)
    if not isinstance(last, nn.Linear):
        found = type(last).__name__ if layers else "none"
        raise ConfigError(
            f"a narrower model needs a linear layer as the last of the model ({type(model).__name__}), found {found}"
        )
    return path


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a layer stands.

    Attributes:
        name: Its path.
        first, last: Whether it is the first or last layer.
        before: Outputs of the layer before; 0 before the first.
        groups: Of its outputs and inputs.
    """

    name: str
    first: bool
    last: bool
    before: int
    groups: tuple[int, int]


class Channels:
    """How many of so many channels are kept: the share rounded up, in equal numbers for each head of attention."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        self._rate = rate
        heads = {
            groups[1]
            for module in model.modules()
            if isinstance(module, NarrowGroups)
            for groups in module.narrow_groups().values()
        } - {1}
        if len(heads) > 1:
            raise ConfigError(
                f"the model ({type(model).__name__}) has attention with different numbers of heads, {sorted(heads)}; "
                "a narrower model needs the same everywhere"
            )
        self._heads = heads.pop() if heads else 1

    def __call__(self, channels: int) -> int:
        """Of so many channels that stand side by side."""
        return self.grouped(channels, self._heads if channels % self._heads == 0 else 1)

    def grouped(self, channels: int, groups: int) -> int:
        """Of channels in so many groups, in equal numbers of each."""
        return groups * math.ceil(channels // groups * self._rate - 1e-9)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.Embedding, nn.LSTM))


def _outputs_of(module: nn.Module) -> int:
    """Channels that a layer gives; 0 for what is none."""
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return module.hidden_size if isinstance(module, nn.LSTM) else 0


def _kept_of(module: nn.Module, place: _Place, channels: Channels) -> dict[str, tuple[Kept, ...]]:
    """Of each own tensor of a module what is kept."""
    if isinstance(module, CONVOLUTIONS):
        return _kept_of_convolution(module, place, channels)
    if isinstance(module, nn.Linear):
        return _kept_of_linear(module, place, channels)
    if isinstance(module, nn.Embedding):
        return {"weight": (Kept(size=module.num_embeddings), Kept(size=channels(module.embedding_dim)))}
    if isinstance(module, nn.LSTM):
        return _kept_of_lstm(module, place, channels)
    if isinstance(module, (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm)):
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        return {name: tuple(Kept(size=channels(size)) for size in tensor.shape) for name, tensor in own}
    return dict(_kept_tokens(module, place, channels))


def _kept_of_convolution(module: Any, place: _Place, channels: Channels) -> dict[str, tuple[Kept, ...]]:
    outputs, inputs, *kernel = module.weight.shape
    kept_outputs = Kept(size=outputs if place.last else channels(outputs))
    if module.groups == 1:
        kept_inputs = Kept(size=inputs if place.first else channels(inputs))
    elif module.groups == module.in_channels == module.out_channels:
        kept_inputs = Kept(size=1)  # depthwise: a channel each
    else:
        raise ConfigError(
            f"a narrower model cannot be made with the convolution {place.name} in {module.groups} groups; one group, "
            "or a group for each channel, is needed"
        )
    return {"weight": (kept_outputs, kept_inputs, *(Kept(size=k) for k in kernel)), "bias": (kept_outputs,)}


def _kept_of_linear(module: nn.Linear, place: _Place, channels: Channels) -> dict[str, tuple[Kept, ...]]:
    output_groups, input_groups = place.groups
    outputs, inputs = module.out_features, module.in_features
    if place.last:
        kept_outputs = Kept(size=outputs)
    elif output_groups > 1:
        kept_outputs = Kept(size=channels.grouped(outputs, output_groups), groups=output_groups)
    else:
        kept_outputs = Kept(size=channels(outputs))
    if place.first:
        kept_inputs = Kept(size=inputs)
    elif input_groups > 1 or inputs % place.before:  # fewer than the layer before gives: one of its groups
        if input_groups == 1 and place.before % inputs:
            raise ConfigError(
                f"a narrower model cannot be made with the linear layer {place.name}: its {inputs} inputs must be a "
                f"multiple of the {place.before} outputs of the layer before, or that layer's map, flattened"
            )
        kept_inputs = Kept(size=channels(inputs), groups=input_groups)
    else:  # a flattened map has its channels one after the other, so the first ones are kept whole
        kept_inputs = Kept(size=channels(place.before) * (inputs // place.before))
    return {"weight": (kept_outputs, kept_inputs), "bias": (kept_outputs,)}


def _kept_of_lstm(module: nn.LSTM, place: _Place, channels: Channels) -> dict[str, tuple[Kept, ...]]:
    if module.bidirectional or module.proj_size:
        raise ConfigError(f"a narrower model cannot be made with the LSTM {place.name}: one direction, no projection")
    hidden = channels(module.hidden_size)
    gates = Kept(size=_GATES * hidden, groups=_GATES)
    kept: dict[str, tuple[Kept, ...]] = {}
    for layer in range(module.num_layers):
        inputs = module.input_size if place.first else channels(module.input_size)
        kept[f"weight_ih_l{layer}"] = (gates, Kept(size=hidden if layer else inputs))
        kept[f"weight_hh_l{layer}"] = (gates, Kept(size=hidden))
        kept |= {f"bias_ih_l{layer}": (gates,), f"bias_hh_l{layer}": (gates,)}
    return kept


def _kept_tokens(module: nn.Module, place: _Place, channels: Channels) -> Iterator[tuple[str, tuple[Kept, ...]]]:
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.ndim != 3 or tensor.shape[0] != 1:
            raise ConfigError(
                f"a narrower model cannot be made: {place.name} ({type(module).__name__}) holds {name!r} of shape "
                f"{list(tensor.shape)}, of which it is not known which dimensions are channels; known are "
                "convolutions, linear layers, norms, embeddings, LSTMs and learnt tokens (1, tokens, channels)"
            )
        _, tokens, width = tensor.shape
        yield name, (Kept(size=1), Kept(size=tokens), Kept(size=channels(width)))
