"""Global masks: what share stays, by which score, and the scores that need no data."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedhybrid.errors import ConfigError
from fedhybrid.methods.zeroth.noise import MASK, mask_name, seeded
from fedhybrid.models.perturbed import PRUNED_LAYERS
from fedhybrid.tree import Tensors

__all__ = [
    "largest",
    "masked",
    "masked_names",
    "pruned_layers",
    "refuse_empty",
    "scheduled",
    "synflow",
    "synflow_masks",
    "with_masks",
]

_SYNFLOW_ROUNDS = 100
# Normalisations, and activation functions with an upper bound: synaptic flow does not get through.
_HIDING = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Hardtanh,  # ReLU6 is one
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Softsign,
    nn.Tanh,
)


def scheduled(density: float, done: int, rounds: int) -> float:
    """Which share stays after so many of all pruning rounds: an exponential schedule.

    >>> [round(scheduled(0.1, t, 2), 3) for t in range(3)]
    [1.0, 0.316, 0.1]
    """
    return float(density ** (done / rounds))


def largest(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], density: float) -> Tensors:
    """The masks with only the largest scores left, over all layers together.

    Exactly round(density * entries) entries stay, or all that did before where those are fewer.

    Args:
        scores: By the names of weights; not negative.
        masks: Bool, by the same names: what stays so far.
        density: Share of all entries that stays.

    Raises:
        ConfigError: A score is no finite number.
    """
    kept = torch.cat([masks[name].flatten() for name in scores])
    flat = torch.cat([score.flatten().to(torch.float64) for score in scores.values()])[kept]
    if not bool(flat.isfinite().all()):
        raise ConfigError("the scores of masks are not all finite numbers: take another mask, or a smaller prune_eps")
    count = min(round(density * len(kept)), len(flat))
    # Not a sort: that takes four times as long.
    least = flat.kthvalue(len(flat) - count + 1).values if count else torch.tensor(math.inf)
    among = flat > least
    equal = (flat == least).nonzero().flatten()
    among[equal[: count - int(among.sum())]] = True  # of equal ones the first
    chosen = torch.zeros(len(kept), dtype=torch.bool)
    chosen[kept] = among
    parts = torch.split(chosen, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def masked_names(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the weights that have a mask, sorted."""
    return tuple(sorted(name for name in weights if mask_name(name) in weights and name != mask_name(name)))


def masked(weights: Tensors) -> Tensors:
    """The same tensors, zero where a mask has nothing."""
    return weights | {name: weights[name] * weights[mask_name(name)] for name in masked_names(weights)}


def refuse_empty(masks: Mapping[str, Tensor]) -> None:
    """Every layer must keep an entry: one without any passes on nothing of its inputs.

    Args:
        masks: By the names of weights.

    Raises:
        ConfigError: A layer has none.
    """
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    if empty:
        kept, entries = (sum(count) for count in zip(*((int(m.sum()), m.numel()) for m in masks.values()), strict=True))
        shown = ", ".join(empty[:3]) + (" ..." if len(empty) > 3 else "")
        raise ConfigError(
            f"each layer must keep a weight; of {kept:,} that stay of {entries:,} there are none in {len(empty)} of "
            f'{len(masks)} layers: {shown}: raise density, or take another mask (for "foresight" also more '
            "prune_directions, prune_repeats or prune_rounds); where the network has ways round those layers, as "
            "residual ones have, set allow_empty_layers = true"
        )


def pruned_layers(model: nn.Module) -> tuple[str, ...]:
    """Paths of the convolutions and linear layers, whose weights may be pruned."""
    return tuple(path for path, module in model.named_modules() if isinstance(module, PRUNED_LAYERS))


def with_masks(
    model: nn.Module, sample: Tensor, *, kind: str, density: float, seed: int, allow_empty: bool
) -> nn.Module:
    """A copy of the model whose convolutions and linear layers have masks.

    Args:
        model: Any.
        sample: Inputs of a few samples, of which only the shape is read.
        kind: "random", "magnitude" or "synflow" choose entries now; with any other all stay at first.
        density: Share of the entries that stays, where they are chosen.
        seed: Of "random".
        allow_empty: Whether a layer may be left without any entry.

    Raises:
        ConfigError: A layer is left without any entry and may not be, or synaptic flow does not reach one.
    """
    other = copy.deepcopy(model)
    for path in pruned_layers(other):
        layer = other.get_submodule(path)
        layer.register_buffer(MASK, torch.ones(layer.get_parameter("weight").shape, dtype=torch.bool))
    weights = {
        (f"{path}.weight" if path else "weight"): other.get_submodule(path).get_parameter("weight").detach()
        for path in pruned_layers(other)
    }
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    if kind == "random":
        generator = seeded(seed)
        masks = largest({n: torch.rand(w.shape, generator=generator) for n, w in weights.items()}, masks, density)
    elif kind == "magnitude":
        masks = largest({name: weight.abs() for name, weight in weights.items()}, masks, density)
    elif kind == "synflow":
        masks = synflow_masks(model, sample, masks, density)
    if not allow_empty:
        refuse_empty(masks)
    for name, mask in masks.items():
        other.get_buffer(mask_name(name)).copy_(mask)
    return other


def synflow(model: nn.Module, sample: Tensor, masks: Mapping[str, Tensor]) -> Tensors:
    """Synaptic flow of each weight under a mask: |weight| times the gradient of all scores' sum.

    The model has the absolute values of its weights and sees ones. What would hide the flow passes its inputs on (ours:
    the paper's networks have batch norm and ReLU only): normalisations, and activation functions with an upper bound,
    which numbers as large as these are always beyond. In float64, as flows of deep networks are large.

    Args:
        model: Stays as it is.
        sample: Inputs, of which only the shape is read.
        masks: By the names of weights.

    Source: H. Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow",
    NeurIPS 2020, https://arxiv.org/abs/2006.05467, Algorithm 1.
    """
    return _flows(_of_absolute_weights(model), sample, masks)


def synflow_masks(
    model: nn.Module, sample: Tensor, masks: Mapping[str, Tensor], density: float, rounds: int = _SYNFLOW_ROUNDS
) -> Tensors:
    """Masks by synaptic flow, which is looked at again after each of a number of rounds; see `synflow`.

    Raises:
        ConfigError: No flow reaches a layer of the whole network, or any layer of a pruned one.
    """
    other, chosen = _of_absolute_weights(model), dict(masks)
    for done in range(1, rounds + 1):
        flows = _flows(other, sample, chosen)
        dry = [name for name, flow in flows.items() if not bool(flow.any())]
        if dry and (done == 1 or len(dry) == len(flows)):
            raise ConfigError(
                f'mask = "synflow" needs a flow through every layer; in round {done} of {rounds} none reaches '
                f"{', '.join(dry[:3])}{' ...' if len(dry) > 3 else ''}: raise density, or take another mask"
            )
        chosen = largest(flows, chosen, scheduled(density, done, rounds))
    return chosen


def _of_absolute_weights(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model).to(torch.float64).requires_grad_(False)
    for path, module in list(other.named_modules(remove_duplicate=False)):
        if isinstance(module, _HIDING):
            parent, _, name = path.rpartition(".")
            setattr(other.get_submodule(parent), name, nn.Identity())
    for parameter in other.parameters():
        parameter.abs_()
    return other


def _flows(other: nn.Module, sample: Tensor, masks: Mapping[str, Tensor]) -> Tensors:
    weights = {name: (other.get_parameter(name) * mask).requires_grad_() for name, mask in masks.items()}
    ones = torch.ones((1, *sample.shape[1:]), dtype=torch.float64)
    total = functional_call(other, weights, (ones,)).sum()
    gradients = torch.autograd.grad(total, list(weights.values()))
    return {name: w.detach() * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
