"""What a model must not do to be captured, and how the capture leaves the model as it found it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError

__all__ = ["check_trainable", "untouched"]


def check_trainable(model: nn.Module, loss_fn: Callable[..., Any], *, forward_only: bool = False) -> None:
    """Refuses what a captured step would silently do otherwise than eager PyTorch.

    Args:
        model: What is captured.
        loss_fn: With what.
        forward_only: Whether nothing shall be trained, else something must.

    Raises:
        ConfigError: Nothing to train (or something, where nothing shall be), hooks on parameters, parameters inside the
            loss function, or two parameters that overlap in memory without being one.
    """
    params = dict(model.named_parameters())
    problems = []
    trains = any(p.requires_grad for p in params.values())
    if not trains and not forward_only:
        problems.append("the model has no parameter with requires_grad=True; there is nothing to train")
    if trains and forward_only:
        problems.append("a step that is only a forward pass has no gradients: set requires_grad=False everywhere")
    hooked = [n for n, p in params.items() if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)]
    if hooked:
        problems.append(f"hooks on parameters do not run in a captured step: remove those of {', '.join(hooked)}")
    if isinstance(loss_fn, nn.Module) and any(p.requires_grad for p in loss_fn.parameters()):
        problems.append("loss_fn has parameters of its own, which would not be trained: move them into the model")
    problems += [
        f"parameters {a!r} and {b!r} overlap in memory: make them one (other.weight = this.weight) or clone one"
        for a, b in _overlapping(params)
    ]
    if problems:
        raise ConfigError(problems)


def _overlapping(params: dict[str, nn.Parameter]) -> Iterator[tuple[str, str]]:
    """Neighbours in memory that share bytes."""
    ranges = sorted((p.data_ptr(), p.data_ptr() + _extent_bytes(p), name) for name, p in params.items() if p.numel())
    for (_, end, name), (start, _, following) in pairwise(ranges):
        if start < end:
            yield name, following


def _extent_bytes(tensor: Tensor) -> int:
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Puts every module's attributes back when the block ends, and the content of tensors that are plain attributes.

    A forward pass may store its activations (`self.last = h`) or count its calls; traced, it would leave fake tensors
    behind.
    """
    saved = [
        (module, dict(vars(module)), {k: dict(vars(module)[k]) for k in ("_parameters", "_buffers", "_modules")})
        for module in model.modules()
    ]
    plain = [t for _, attributes, _ in saved for t in attributes.values() if isinstance(t, Tensor)]
    copies = [t.detach().clone() for t in plain]
    try:
        yield
    finally:
        for module, attributes, inner in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in inner.items():
                vars(module)[name].clear()
                vars(module)[name].update(content)
        with torch.no_grad():
            for tensor, copy in zip(plain, copies, strict=True):
                if not torch.equal(tensor, copy):
                    tensor.copy_(copy)
