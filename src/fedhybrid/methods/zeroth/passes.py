"""The submodels of training without gradients, by their names, and a client's passes through them.

A name is a kind and a number of parts, such as "one-4": the batch goes through in four passes of a quarter each. Kinds:
"pair", a perturbation and its opposite at once, whose noise is drawn once; "one", one perturbation; "ntk", what the
kernel's saliency compares, forward only; "ntk-bp", the same with a gradient; "snip", the gradient of the loss with
respect to the masks. Which one runs changes memory and time alone: noise, and so results, are the same. "pair" saves
time where what operators cost at least is most of it, in small networks; elsewhere its copies of activations cost more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from fedhybrid.executor import SGD
from fedhybrid.methods.zeroth.masks import masked_names
from fedhybrid.methods.zeroth.noise import SCALES, moved
from fedhybrid.methods.zeroth.saliency import (
    SHIFT,
    distance_loss,
    first_lane_loss,
    noisy_masks,
    shifted_mask,
    shifted_masks,
)
from fedhybrid.models.perturbed import PART, Rule, model_in_lanes
from fedhybrid.protocols import ClientRuntime, Submodel
from fedhybrid.tree import Tensors, tensors_of

__all__ = ["PARTS", "Passes", "differences", "kind_of", "parts_of", "submodel_of", "with_controls"]

PARTS = (1, 2, 4, 8)  # into how many the batch may be cut
_LANES = {"pair": 2, "one": 1, "ntk": 2, "ntk-bp": 2, "snip": 1}


def kind_of(name: str) -> str:
    """The kind of a submodel."""
    return name.rpartition("-")[0]


def parts_of(name: str) -> int:
    """In how many passes it goes through a batch."""
    return int(name.rpartition("-")[2])


def submodel_of(whole: Submodel, name: str, *, eps: float) -> Submodel:
    """The submodel of a name.

    Args:
        whole: With the adapted model.
        name: See above.
        eps: Deviation of the weights' noise in the kernel's finite difference.
    """
    kind, parts = kind_of(name), parts_of(name)
    lanes = _LANES[kind]
    if kind in ("pair", "one"):
        module = model_in_lanes(whole.module, moved, lanes=lanes, parts=parts)
        _share_scales(module, lanes, [path for path, layer in module.named_modules() if hasattr(layer, "rule")])
        return replace(whole, module=module, loss_fn=partial(first_lane_loss, loss_fn=whole.loss_fn))
    weights = masked_names(tensors_of(whole.module))
    paths = [weight.removesuffix("weight").removesuffix(".") for weight in weights]
    rules: dict[str, Rule] = {
        "ntk": partial(noisy_masks, eps=eps),
        "ntk-bp": partial(shifted_masks, eps=eps),
        "snip": shifted_mask,
    }
    module = model_in_lanes(
        whole.module, rules[kind], lanes=lanes, parts=parts, only=paths, as_first_lane=kind != "snip"
    )
    if kind == "ntk":
        _share_scales(module, 1, paths)
        return replace(whole, module=module, loss_fn=distance_loss)
    for path in paths:
        layer = module.get_submodule(path)
        layer.register_parameter(SHIFT, nn.Parameter(torch.zeros_like(layer.get_parameter("weight"))))
    loss_fn = partial(first_lane_loss, loss_fn=whole.loss_fn) if kind == "snip" else distance_loss
    return replace(whole, module=module, loss_fn=loss_fn, optimizer=SGD(lr=1.0))


def _share_scales(module: nn.Module, count: int, paths: Sequence[str]) -> None:
    """One buffer for all layers, which the model's tensors name once."""
    scales = torch.zeros(count)
    for path in ("", *paths):
        module.get_submodule(path).register_buffer(SCALES, scales)


def with_controls(weights: Tensors, client: ClientRuntime) -> Tensors:
    """A task's tensors with those that only its submodel has, which never travel: zeros."""
    return {name: weights[name] if name in weights else torch.zeros_like(t) for name, t in client.tensors.items()}


@final
class Passes:
    """A client's forward passes through its submodel; counts them."""

    def __init__(self, client: ClientRuntime, submodel: str) -> None:
        """The submodel's weights have been loaded."""
        self.client, self.parts = client, parts_of(submodel)
        self.count = 0

    def losses(self, x: Tensor, y: Tensor, *, seed: int, scales: Sequence[float]) -> Tensor:
        """The losses of all samples, float64 (lanes, b), where each lane goes so far along the noise of this seed.

        Args:
            x: Inputs.
            y: Labels.
            seed: Of the noise; every part of the batch sees the same.
            scales: One a lane.
        """
        self.client.tensors[SCALES].copy_(torch.tensor(scales))
        found = [self._one(x, y, part, seed) for part in range(self.parts)]
        return torch.cat(found, dim=1)[:, : len(y)]

    def _one(self, x: Tensor, y: Tensor, part: int, seed: int) -> Tensor:
        if self.parts > 1:
            self.client.tensors[PART].fill_(part)
        torch.default_generator.manual_seed(seed)
        self.count += 1
        return self.client.step(x, y)[1].detach().to(torch.float64)

    def both(self, x: Tensor, y: Tensor, *, seed: int, scale: float, lanes: int) -> tuple[Tensor, Tensor]:
        """The losses of all samples along the noise of this seed and against it, at once or one after the other."""
        if lanes == 2:
            ahead, back = self.losses(x, y, seed=seed, scales=(scale, -scale))
            return ahead, back
        one = (self.losses(x, y, seed=seed, scales=(side,))[0] for side in (scale, -scale))
        return next(one), next(one)

    def add_gradients(self, total: Tensors, x: Tensor, y: Tensor, *, seed: int, share: float) -> Tensor:
        """Adds a share of the gradient of the samples' mean with respect to masks to `total`; the samples' losses.

        It is what steps of SGD with learning rate 1 make of zeros.

        Args:
            total: By the names of what is added to masks; in place.
            x: Inputs.
            y: Labels.
            seed: Of the noise.
            share: That the gradient is multiplied by.
        """
        losses = []
        for part in range(self.parts):
            losses.append(self._one(x, y, part, seed)[0])
            for name, tensor in total.items():
                tensor.sub_(self.client.tensors[name], alpha=share / len(y))
                self.client.tensors[name].zero_()
        return torch.cat(losses)[: len(y)]


def differences(
    passes: Passes, x: Tensor, y: Tensor, *, seeds: Sequence[int], sigma: float, central: bool, lanes: int
) -> tuple[Tensor, Tensor]:
    """How the mean loss of a batch changes along each direction, float32 (k,), and the losses of its samples, (b,).

    Args:
        passes: Of a submodel of the kind "pair" or "one".
        x: Inputs.
        y: Labels.
        seeds: Of the directions.
        sigma: Length of the perturbation.
        central: Half of loss(w + sigma z) - loss(w - sigma z), else loss(w + sigma z) - loss(w).
        lanes: 2 for "pair", else 1.
    """
    base = None if central else passes.losses(x, y, seed=seeds[0], scales=(0.0,))[0]
    found, losses = [], base
    for seed in seeds:
        if base is not None:
            found.append(passes.losses(x, y, seed=seed, scales=(sigma,))[0].mean() - base.mean())
            continue
        ahead, back = passes.both(x, y, seed=seed, scale=sigma, lanes=lanes)
        found.append((ahead.mean() - back.mean()) / 2)
        losses = (ahead + back) / 2 if losses is None else losses
    assert losses is not None
    return torch.stack(found).to(torch.float32), losses
