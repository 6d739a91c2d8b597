"""Models whose layers use other parameters than they hold, made where they are used and gone when the layer is done.

A layer may do so for several lanes: a batch is then as many copies of the samples, one behind the other, and each copy
goes through the layer with parameters of its own. What lies between layers (activation functions, pooling, sums) never
notices. So a network with noise on its weights, or two networks that differ a little, run as one program that holds one
copy of the weights; what else it needs of them it needs one layer at a time.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError

__all__ = [
    "DRAW_ORDER",
    "PART",
    "PRUNED_LAYERS",
    "Rule",
    "draw_names",
    "layers_in_order",
    "model_in_lanes",
    "with_draw_order",
]

DRAW_ORDER = "draw_order"  # a buffer of the model: which of its tensors, by sorted names, noise is drawn for, in order
PART = "batch_part"  # a buffer of a model in lanes that goes through a batch in parts: which one is due
PRUNED_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_SHARING_NORMS = (nn.GroupNorm, nn.LayerNorm)

# Of a layer and what it holds (parameters and buffers by their names): its parameters, lane after lane.
Rule = Callable[[nn.Module, Mapping[str, Tensor]], Iterator[Mapping[str, Tensor]]]


class _InLanes(nn.Module):
    """What a layer becomes beside what it is; it keeps its parameters, its buffers and their names."""

    rule: Rule
    lanes: int

    def forward(self, x: Tensor) -> Tensor:
        """(lanes * b, ...) to (lanes * b, ...)."""
        held, results = dict(self._parameters), []
        tensors = {name: tensor for name, tensor in (*held.items(), *self._buffers.items()) if tensor is not None}
        try:
            for parameters, part in zip(self.rule(self, tensors), x.chunk(self.lanes), strict=True):
                cast(dict[str, Any], self._parameters).update(parameters)
                results.append(super().forward(part))
        finally:
            self._parameters.update(held)
        return results[0] if self.lanes == 1 else torch.cat(results)


class _AsFirstLane(nn.Module):
    """A normalisation whose lanes all have the mean and the variance of the first."""

    lanes: int

    def forward(self, x: Tensor) -> Tensor:
        """(lanes * b, ...) to (lanes * b, ...)."""
        if isinstance(self, nn.GroupNorm):
            grouped = x.reshape(self.lanes, -1, self.num_groups, x[0].numel() // self.num_groups)
            affine = (1, -1, *(1,) * (x.dim() - 2))
        else:
            assert isinstance(self, nn.LayerNorm)
            kept = x.shape[: x.dim() - len(self.normalized_shape)]
            grouped = x.reshape(self.lanes, kept[0] // self.lanes, *kept[1:], -1)
            affine = (*(1,) * len(kept), *self.normalized_shape)
        var, mean = torch.var_mean(grouped[:1], dim=-1, correction=0, keepdim=True)
        y = ((grouped - mean) * torch.rsqrt(var + self.eps)).reshape(x.shape)
        y = y if self.weight is None else y * self.weight.view(affine)
        bias = cast(Tensor | None, self.bias)
        return y if bias is None else y + bias.view(affine)


class _OfBatch(nn.Module):
    """The model itself: it looks at a part of the batch, and at as many copies of it as there are lanes."""

    lanes: int
    parts: int

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, ...) to the scores of the part's samples in each lane, their rows, and 1 for each row that is one."""
        size = -(-len(x) // self.parts)
        rows = torch.arange(size)
        if self.parts > 1:
            rows = rows + self.get_buffer(PART) * size
        there = (rows < len(x)).to(x.dtype if x.is_floating_point() else torch.float32)
        rows = rows.clamp(max=len(x) - 1)  # the last part may be shorter
        chosen = x.index_select(0, rows) if self.parts > 1 else x
        chosen = torch.cat([chosen] * self.lanes) if self.lanes > 1 else chosen
        return super().forward(chosen), rows, there


def _mixed(mixin: type[nn.Module], layer: nn.Module) -> Any:
    """A class whose forward pass is the mixin's, round that of the layer's own."""
    return type(f"{type(layer).__name__}{mixin.__name__}", (mixin, type(layer)), {})


def model_in_lanes(
    model: nn.Module,
    rule: Rule,
    *,
    lanes: int = 1,
    parts: int = 1,
    only: Collection[str] | None = None,
    as_first_lane: bool = False,
) -> nn.Module:
    """A copy of the model in which nothing is trained, with the same names, and whose layers follow a rule.

    It maps a batch of b samples to (scores, rows, there): of ceil(b / parts) samples, those that the buffer
    `batch_part` says (a number from 0), in each lane, one lane behind the other; their rows in the batch; and 0 in
    place of 1 for rows that only fill up the last part.

    Args:
        model: Each of its parameters belongs to a layer that is used once (`layers_in_order`).
        rule: Gives a layer's parameters for each lane. It runs in every pass, layer by layer.
        lanes: How many.
        parts: In how many passes a batch is gone through.
        only: Paths of the layers that follow the rule; all that hold parameters where None.
        as_first_lane: Normalisations outside `only` take mean and variance from the first lane.
    """
    other = copy.deepcopy(model).requires_grad_(False)
    for path, layer in list(other.named_modules()):
        if (path in only) if only is not None else any(True for _ in layer.parameters(recurse=False)):
            layer.__class__ = _mixed(_InLanes, layer)
            vars(layer).update(rule=rule, lanes=lanes)
        elif as_first_lane and isinstance(layer, _SHARING_NORMS):
            layer.__class__ = _mixed(_AsFirstLane, layer)
            vars(layer).update(lanes=lanes)
    other.__class__ = _mixed(_OfBatch, other)
    vars(other).update(lanes=lanes, parts=parts)
    if parts > 1:
        other.register_buffer(PART, torch.zeros((), dtype=torch.int64))
    return other.train(model.training)


def layers_in_order(model: nn.Module, sample: Tensor) -> tuple[str, ...]:
    """Paths of the layers that hold parameters, in the order in which a forward pass uses them.

    Args:
        model: Stays as it is.
        sample: Inputs of a few samples, of which only the form means anything.

    Raises:
        ConfigError: Batch normalisation, dropout or other noise, parameters that do not belong to a layer which maps
            one tensor to one tensor and is used once, or tensors that two layers share.
    """
    problems = []
    norms = [path for path, module in model.named_modules() if isinstance(module, _BATCH_NORMS)]
    if norms:
        problems.append(
            f"training without gradients needs a model without batch normalisation, whose statistics would be those "
            f"of perturbed weights; found {', '.join(norms[:3])}{' ...' if len(norms) > 3 else ''}: use group "
            'normalisation (norm = "group" in [model_options])'
        )
    owners = [path for path, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    problems += [
        f"training without gradients needs parameters that belong to layers; {path or 'the model'!r} holds some beside "
        "other layers: give them a layer of their own, or take another model, such as cnn or resnet20"
        for path in owners
        if any(True for _ in model.get_submodule(path).children())
    ]
    named = list(model.named_parameters(remove_duplicate=False))
    shared = [name for name, p in named if sum(p is other for _, other in named) > 1]
    if shared:
        problems.append(f"training without gradients needs a tensor for each layer; {', '.join(shared)} are one")
    used, drew = _used(model, owners, sample)
    if drew:
        problems.append("training without gradients needs a forward pass without noise of its own: set dropout to 0")
    problems += [
        "training without gradients needs each layer to be used once in a forward pass, from one tensor to one tensor; "
        f"{path or 'the model'!r} is used {used.count(path)} times: take another model, such as cnn or resnet20"
        for path in owners
        if used.count(path) != 1
    ]
    if problems:
        raise ConfigError(problems)
    return tuple(used)


def _used(model: nn.Module, paths: list[str], sample: Tensor) -> tuple[list[str], bool]:
    """Which of these layers a forward pass uses, each as often as it does, and whether it draws random numbers."""
    other, used = copy.deepcopy(model).train(), []

    def note(path: str, _: nn.Module, given: Any, result: Any) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(result, Tensor):
            used.append(path)

    for path in paths:
        other.get_submodule(path).register_forward_hook(functools.partial(note, path))
    before = torch.get_rng_state()
    with torch.no_grad():
        other(sample[:2])
    drew = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return used, drew


def with_draw_order(model: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """A copy of the model with the buffer `draw_order`, by which whoever has its tensors knows how noise is drawn.

    Args:
        model: With all buffers that it will ever have.
        layers: As from `layers_in_order`.
    """
    other = copy.deepcopy(model)
    count = sum(1 for layer in layers for _ in other.get_submodule(layer).parameters(recurse=False))
    other.register_buffer(DRAW_ORDER, torch.zeros(count, dtype=torch.int64))
    names = sorted(name for name, _ in (*other.named_parameters(), *other.named_buffers()))
    drawn = [
        f"{path}.{name}" if path else name
        for path in layers
        for name, _ in other.get_submodule(path).named_parameters(recurse=False)
    ]
    other.get_buffer(DRAW_ORDER).copy_(torch.tensor([names.index(name) for name in drawn]))
    return other


def draw_names(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the parameters in the order in which noise is drawn for them.

    Args:
        weights: All tensors of a model from `with_draw_order`, and no others.
    """
    names = sorted(weights)
    return tuple(names[number] for number in weights[DRAW_ORDER].tolist())
