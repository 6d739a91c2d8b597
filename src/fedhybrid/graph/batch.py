"""Batches: their tensors in order, and the shapes and types that a captured step holds them to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fedhybrid.errors import ConfigError

__all__ = ["BatchSpec", "batch_tensors", "call_loss"]


@dataclass(frozen=True)
class BatchSpec:
    """Structure, shapes and types of a batch; a program takes exactly one."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    def flatten(self, batch: Any) -> list[Tensor]:
        """The batch's tensors in order.

        Raises:
            ConfigError: Another structure, shape or type than the program was captured with.
        """
        leaves, structure = pytree.tree_flatten(batch)
        if structure != self.structure:
            raise ConfigError(f"the batch must have the structure {self.structure}, got {structure}")
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        if shapes != self.shapes or tuple(leaf.dtype for leaf in leaves) != self.dtypes:
            raise ConfigError(
                f"this step was compiled for batches of shapes {list(self.shapes)} and types {list(self.dtypes)}, "
                f"got {list(shapes)} and {[leaf.dtype for leaf in leaves]}. "
                "Compile a step for this shape too, or compile with other_shapes='compile'."
            )
        if tuple(leaf.stride() for leaf in leaves) != self.strides:
            raise ConfigError(
                f"this step was compiled for batches with strides {list(self.strides)}, got "
                f"{[leaf.stride() for leaf in leaves]}. Call .contiguous() on the batch, or compile with such a batch."
            )
        if any(leaf.device.type != "cpu" for leaf in leaves):
            raise ConfigError(f"the batch must be on the CPU, found {[leaf.device.type for leaf in leaves]}")
        return list(leaves)


def batch_tensors(batch: Any) -> tuple[list[Tensor], BatchSpec]:
    """The tensors of a batch and the structure that puts them back.

    Raises:
        ConfigError: Something in the batch is no tensor.
    """
    leaves, structure = pytree.tree_flatten(batch)
    if not (isinstance(batch, dict) or (isinstance(batch, tuple) and len(batch) == 2)):
        found = f"{type(batch).__name__} of length {len(batch)}" if isinstance(batch, tuple) else type(batch).__name__
        raise ConfigError(f"a batch must be a pair (x, y) or one dictionary of tensors, got {found}")
    strange = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
    if strange or not leaves:
        raise ConfigError(f"a batch must hold tensors only, got {', '.join(strange) or 'nothing'}")
    elsewhere = {t.device.type for t in leaves} - {"cpu"}
    if elsewhere:
        raise ConfigError(f"the batch must be on the CPU in this version, found it on {', '.join(sorted(elsewhere))}")
    spec = BatchSpec(
        structure,
        tuple(tuple(t.shape) for t in leaves),
        tuple(t.stride() for t in leaves),
        tuple(t.dtype for t in leaves),
    )
    return leaves, spec


def call_loss(model: Callable[..., Any], loss_fn: Callable[..., Any], batch: Any) -> tuple[Tensor, Tensor | None]:
    """Loss and auxiliary output of one batch.

    A batch `(x, y)` means `loss_fn(model(x), y)`, with `x` a tensor, a tuple of positional or a dictionary of keyword
    inputs; a batch that is one dictionary means `loss_fn(model, batch)`.
    """
    if isinstance(batch, dict):
        result = loss_fn(model, batch)
    else:
        x, y = batch
        if isinstance(x, dict):
            output = model(**x)
        elif isinstance(x, (tuple, list)):
            output = model(*x)
        else:
            output = model(x)
        result = loss_fn(output, y)
    loss, aux = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(loss, Tensor) or not isinstance(aux, Tensor | None):
        found = f"({type(loss).__name__}, {type(aux).__name__})" if aux is not None else type(loss).__name__
        raise ConfigError(f"loss_fn must return a scalar tensor, or a pair (scalar, tensor), got {found}")
    if loss.dim() != 0:
        raise ConfigError(f"loss_fn must return a scalar, got shape {tuple(loss.shape)}; take its mean or sum")
    return loss, None if aux is None else aux.detach()
