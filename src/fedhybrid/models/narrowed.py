"""A network with the first share of its channels (`models/shares.py`); its tensors' way out of the whole and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.shares import BATCH_NORMS, CONVOLUTIONS, Channels, Kept, KeptShares, kept_shares, last_layer
from fedhybrid.tree import Tensors

__all__ = ["Resizes", "cut", "groups_of", "narrowed", "require_narrow", "widened", "with_groups", "without_groups"]

_NOTE = "narrowing"  # a submodule of the whole model
_NOTED = f"{_NOTE}.groups"


@runtime_checkable
class Resizes(Protocol):
    """A module without parameters that knows numbers of channels."""

    def resize(self, channels: Callable[[int], int]) -> None:
        """Replaces each number that it knows by the new one."""
        ...


def narrowed(model: nn.Module, rate: float, *, scaler: bool = True) -> nn.Module:
    """A copy with the first share of the channels of each inner layer; its tensors have the model's names.

    Args:
        model: Not changed.
        rate: The share, above 0 and at most 1; numbers of channels are rounded up.
        scaler: Whether the outputs of each convolution and linear layer but the last are divided by the share while
            training, so that they are as large as those of the whole model (HeteroFL's Scaler).

    Raises:
        ConfigError: The model has a layer of which it is not known what a share would be.
    """
    shares = kept_shares(model, rate)
    own = copy.deepcopy(model)
    channels = Channels(own, rate)
    last = last_layer(own)
    for path, module in own.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = _cut_tensor(parameter.detach(), shares[prefix + name])
            setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, _cut_tensor(buffer, shares[prefix + name]))
        _renumber(module, channels)
        if scaler and rate != 1 and path != last and isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            module.register_forward_hook(_Scaler(rate=rate))
    return own


def require_narrow(model: nn.Module, sample: Tensor, rate: float) -> None:
    """Checks that a narrower model gives what the model does; shapes alone are computed.

    Layers count as they stand in the tree of modules: a model that uses them in another order, or knows numbers of
    channels that nothing here can change, is found out by its forward pass.

    Args:
        model: Not changed.
        sample: Inputs, shape (batch, ...), of which only the form counts.
        rate: As in `narrowed`.

    Raises:
        ConfigError: As `narrowed`, or its forward pass fails or ends in another shape.
    """
    wide, narrow = (copy.deepcopy(each).to("meta").eval() for each in (model, narrowed(model, rate)))
    try:
        expected, found = (list(each(sample.to("meta")).shape) for each in (wide, narrow))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
    else:
        if found == expected:
            return
        reason = f"its output has shape {found}, not {expected}"
    raise ConfigError(
        f"the model ({type(model).__name__}) with a share of {rate:g} of its channels does not run: {reason}. Layers "
        "must be registered in the order in which they run, one input layer first, and numbers of channels must follow "
        "from them (or from a method resize(), see fedhybrid.models.narrowed.Resizes)"
    )


def with_groups(model: nn.Module) -> nn.Module:
    """The model itself or, where some layers have groups, a copy with a buffer that `groups_of` reads.

    Raises:
        ConfigError: As `narrowed`, or it has a submodule of the buffer's name.
    """
    if hasattr(model, _NOTE):
        raise ConfigError(f"the model ({type(model).__name__}) must not have a submodule called {_NOTE!r}; rename it")
    shares = kept_shares(model, 1.0)
    if all(kept.groups == 1 for share in shares.values() for kept in share):
        return model
    rows = [[kept.groups for kept in (*shares[name], *(Kept(size=1),) * 2)[:2]] for name in sorted(shares)]
    made = copy.deepcopy(model)
    note = nn.Module()
    note.register_buffer("groups", torch.tensor(rows, dtype=torch.int64))
    setattr(made, _NOTE, note.train(model.training))
    return made


def without_groups(model: nn.Module) -> nn.Module:
    """What `with_groups` was given: the model itself, or a copy without the buffer."""
    if not hasattr(model, _NOTE):
        return model
    made = copy.deepcopy(model)
    delattr(made, _NOTE)
    return made


def groups_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The groups that `widened` wants, from the tensors of a model of `with_groups`; empty where there is no buffer."""
    if _NOTED not in tensors:
        return {}
    names = sorted(name for name in tensors if name != _NOTED)
    return {
        name: (*rows, 1, 1, 1)[: tensors[name].ndim]
        for name, rows in zip(names, map(tuple, tensors[_NOTED].tolist()), strict=True)
    }


def cut(tensors: Mapping[str, Tensor], shares: KeptShares) -> Tensors:
    """The narrow model's tensors out of the whole model's; those that `shares` does not name are left out."""
    return {name: _cut_tensor(tensors[name], kept) for name, kept in shares.items()}


def widened(
    tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor], groups: Mapping[str, tuple[int, ...]]
) -> tuple[Tensors, Tensors]:
    """Tensors of a narrow model at their places in the whole one, and where they are.

    Args:
        tensors: Of the narrow model; each dimension at most as long as the reference's.
        reference: The whole model's tensors, of which only shapes count.
        groups: For some names the groups of each dimension (`Kept.groups`); one where it says nothing.

    Returns:
        Tensors of the reference's shapes, zero elsewhere; and, for those that were smaller, bool tensors of what is
        there.
    """
    wide, masks = {}, {}
    for name, tensor in tensors.items():
        whole = reference[name].shape
        if tensor.shape == whole:
            wide[name] = tensor
            continue
        there = torch.ones((), dtype=torch.bool)
        for dimension, (size, length) in enumerate(zip(tensor.shape, whole, strict=True)):
            line = torch.zeros(length, dtype=torch.bool)
            line[Kept(size=size, groups=groups.get(name, (1,) * len(whole))[dimension]).places(length)] = True
            there = there.unsqueeze(-1) & line
        wide[name] = torch.zeros(whole, dtype=tensor.dtype).masked_scatter(there, tensor)
        masks[name] = there
    return wide, masks


@dataclass(frozen=True, kw_only=True)
class _Scaler:
    """A forward hook that makes a narrow layer's output as large as the whole layer's while training."""

    rate: float

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output / self.rate if module.training else output


def _cut_tensor(tensor: Tensor, kept: tuple[Kept, ...]) -> Tensor:
    for dimension, share in enumerate(kept):
        if share.size < tensor.shape[dimension]:
            tensor = tensor.index_select(dimension, share.places(tensor.shape[dimension]))
    return tensor.detach().clone()


def _renumber(module: nn.Module, channels: Channels) -> None:
    """Brings what a module says of itself in line with its tensors."""
    if isinstance(module, CONVOLUTIONS):
        module.out_channels = module.weight.shape[0]
        module.groups = 1 if module.groups == 1 else module.out_channels
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.LSTM):
        module.hidden_size = channels(module.hidden_size)
        module.input_size = cast(Tensor, module.weight_ih_l0).shape[1]
    elif isinstance(module, BATCH_NORMS):
        module.num_features = channels(module.num_features)
    elif isinstance(module, nn.GroupNorm):
        kept = channels(module.num_channels)
        if kept < module.num_channels:
            module.num_channels, module.num_groups = kept, _norm_groups(kept, module.num_groups)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(channels(size) for size in module.normalized_shape)
    elif isinstance(module, Resizes):
        module.resize(channels)


def _norm_groups(channels: int, most: int) -> int:
    """At most as many groups as before, of at least two channels each, as with one a 1 x 1 map would become zero."""
    return max(g for g in range(1, most + 1) if channels % g == 0 and (g == 1 or channels >= 2 * g))
