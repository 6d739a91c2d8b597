"""Which layers of a model may be sparse, and the model with compact layers in their place."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from fedhybrid.models.sparse.layers import SparseConv2d, SparseLinear
from fedhybrid.models.sparse.layout import Layout

__all__ = ["MARK", "compact_model", "marked", "marked_paths", "sparse_paths", "split_path"]

MARK = "may_be_sparse"  # a buffer of one byte: whoever has only a model's tensors knows its sparse layers by it


def sparse_paths(model: nn.Module, scheme: str, dense: Collection[str] = ()) -> tuple[str, ...]:
    """Paths of the layers whose weight may be sparse, in the model's order.

    Convolutions and linear layers, but for the first of them, the last linear layer (the classifier), what a pattern in
    `dense` selects, grouped convolutions, those that are not padded with zeros by whole numbers, and weights that
    another layer shares. The scheme "pattern" is for 3 x 3 convolutions, "channel" for convolutions alone.

    Args:
        model: Any.
        scheme: One of `SCHEMES`.
        dense: Patterns of paths, as in `fnmatch`.
    """
    # Subclasses are left alone: they may read their weight in ways of their own.
    layers = [(path, module) for path, module in model.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]
    kept_dense = {layers[0][0]} if layers else set()
    kept_dense |= set([path for path, module in layers if type(module) is nn.Linear][-1:])
    named = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return tuple(
        path
        for path, module in layers
        if path not in kept_dense
        and not any(fnmatchcase(path, pattern) for pattern in dense)
        and named.count(id(module.weight)) == 1
        and _suits(module, scheme)
    )


def _suits(module: nn.Module, scheme: str) -> bool:
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and (scheme != "pattern" or module.kernel_size == (3, 3))
    return scheme in ("irregular", "block")


def marked(model: nn.Module, paths: Iterable[str]) -> nn.Module:
    """A copy of the model in which these layers have a mark, a buffer that says that their weight may be sparse."""
    other = copy.deepcopy(model)
    for path in paths:
        other.get_submodule(path).register_buffer(MARK, torch.ones((), dtype=torch.uint8))
    return other


def marked_paths(names: Iterable[str]) -> tuple[str, ...]:
    """Paths of the layers that have a mark, by the names of a model's tensors."""
    return tuple(name.removesuffix(f".{MARK}") for name in names if name.endswith(f".{MARK}"))


def compact_model(model: nn.Module, kept: Mapping[str, tuple[Layout, int]]) -> nn.Module:
    """A copy of the model with compact layers that hold no places and values yet.

    Args:
        model: The dense one; it stays as it is.
        kept: By the path of each sparse layer its layout and how many units it holds.

    The same layers serve for training on one machine:

    >>> import fedhybrid as fh
    >>> from fedhybrid.models import build_model
    >>> dense = build_model("resnet20", input_shape=(1, 8, 8), classes=10, seed=0, options={"width": 0.25})
    >>> layouts = {
    ...     path: Layout(scheme="irregular", shape=tuple(dense.get_submodule(path).weight.shape))
    ...     for path in sparse_paths(dense, "irregular")
    ... }
    >>> model = compact_model(dense, {path: (layout, layout.kept(0.9)) for path, layout in layouts.items()})
    >>> with torch.no_grad():
    ...     for path, layout in layouts.items():
    ...         layer, weight = model.get_submodule(path), dense.get_submodule(path).weight
    ...         largest = weight.abs().flatten().topk(layout.kept(0.9)).indices.sort().values
    ...         _ = layer.places.copy_(largest)
    ...         _ = layer.values.copy_(layout.gathered(weight, layer.places))
    >>> x, y = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    >>> loss = torch.nn.functional.cross_entropy
    >>> step = fh.compile_step(model, loss, (x, y), optimizer=fh.SGD(lr=0.1, momentum=0.9))
    >>> plain = fh.compile_step(dense, loss, (x, y), optimizer=fh.SGD(lr=0.1, momentum=0.9))
    >>> bool(torch.isfinite(step(x, y))), step.prepared.resident_bytes < 0.3 * plain.prepared.resident_bytes
    (True, True)

    To change the mask, write new places and values (`fedhybrid.methods.sparse` chooses them) and call
    `step.reset_optimizer()`; nothing is captured anew while the numbers stay the same.
    """
    other = copy.deepcopy(model)
    for path, (layout, count) in kept.items():
        dense = other.get_submodule(path)
        parent_path, name = split_path(path)
        if isinstance(dense, nn.Conv2d):
            setattr(other.get_submodule(parent_path), name, SparseConv2d(dense, layout, count))
        else:
            assert isinstance(dense, nn.Linear)
            setattr(other.get_submodule(parent_path), name, SparseLinear(dense, layout, count))
    return other.train(model.training)


def split_path(path: str) -> tuple[str, str]:
    """A path's parent and its last name."""
    parent, _, name = path.rpartition(".")
    return parent, name
