"""What real training code does beside layers: frozen parts, several inputs, in-place writes, randomness, buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.zoo.case import CLASSES, VOCABULARY, Case, images, seeded, texts

__all__ = [
    "dict_batch",
    "extra_buffers",
    "frozen",
    "in_place",
    "inputs_as_dict",
    "inputs_as_tuple",
    "noisy",
    "parametrized",
    "shared",
    "unused",
    "volumes",
]


class Frozen(nn.Module):
    """A stem that is not trained, its batch norm in evaluation mode, as in fine-tuning; a frozen scale in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(12, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.scale = nn.Parameter(torch.full((12,), 0.5), requires_grad=False)
        self.out = nn.Linear(12, CLASSES)
        self.stem.requires_grad_(False).eval()
        self.body[1].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.body(self.stem(x)).mean((2, 3)) * self.scale)
        return scores


def frozen(side: int) -> Case:
    return Case(model=seeded(Frozen), loss_fn=F.cross_entropy, batch=images(side))


class TwoInputs(nn.Module):
    """An image and a text, joined by attention of one over the other."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.GELU(), nn.Conv2d(12, 12, 3, 2, 1))
        self.read = nn.Embedding(VOCABULARY, 12)
        self.join = nn.MultiheadAttention(12, 2, dropout=0.1, batch_first=True)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        places = self.look(image).flatten(2).transpose(1, 2)
        words = self.read(tokens)
        joined, _ = self.join(words, places, places, need_weights=False)
        scores: Tensor = self.out((words + joined).amax(1))
        return scores


def inputs_as_tuple(side: int) -> Case:
    def batch(size: int, seed: int) -> Any:
        (x, y), (tokens, _) = images(side)(size, seed), texts(side)(size, seed)
        return (x, tokens), y

    return Case(model=seeded(TwoInputs), loss_fn=F.cross_entropy, batch=batch)


def inputs_as_dict(side: int) -> Case:
    def batch(size: int, seed: int) -> Any:
        (x, y), (tokens, _) = images(side)(size, seed), texts(side)(size, seed)
        return {"tokens": tokens, "image": x}, y

    return Case(model=seeded(TwoInputs), loss_fn=F.cross_entropy, batch=batch)


def _whole_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Label smoothing on the scores and a weight per sample."""
    scores = model(batch["image"], batch["tokens"])
    losses = F.cross_entropy(scores, batch["y"], reduction="none", label_smoothing=0.1)
    return (losses * batch["weight"]).sum() / batch["weight"].sum()


def dict_batch(side: int) -> Case:
    def batch(size: int, seed: int) -> Any:
        (x, y), (tokens, _) = images(side)(size, seed), texts(side)(size, seed)
        weight = 0.5 + torch.rand(size, generator=torch.Generator().manual_seed(seed))
        return {"image": x, "tokens": tokens, "y": y, "weight": weight}

    return Case(model=seeded(TwoInputs), loss_fn=_whole_loss, batch=batch)


class InPlace(nn.Module):
    """Activations, sums and dropout that write their input, and a write into a part of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(6))
        self.drop, self.out = nn.Dropout2d(0.2, inplace=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f = self.convs
        h = F.silu(a(x), inplace=True)
        h = F.leaky_relu_(b(h), 0.1)
        h = F.elu(c(h), inplace=True)
        h = F.hardswish(d(h), inplace=True)
        h = h.mul_(0.5).add_(1.0).clamp_(min=-1.0)
        g = e(self.drop(h.clone()))
        g[:, :4] += h[:, 4:]
        g[:, 4:].mul_(2.0)
        h = F.max_pool2d(F.relu_(f(g.tanh_())), 2)
        scores: Tensor = self.out(h.masked_fill(h > 3, 3.0).mean((2, 3)))
        return scores


def in_place(side: int) -> Case:
    return Case(model=seeded(InPlace), loss_fn=F.cross_entropy, batch=images(side))


class Noisy(nn.Module):
    """Every common way to draw random numbers in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(48 if i == 0 else 24, 24) for i in range(7))
        self.fade, self.out = nn.AlphaDropout(0.1), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f, g = self.layers
        h = F.selu(a(F.adaptive_avg_pool2d(x, 4).flatten(1)))
        h = self.fade(F.dropout(b(h), 0.3, self.training))
        h = torch.tanh(c(h + 0.1 * torch.randn_like(h)))
        h = F.rrelu(d(h), training=self.training)
        h = e(h) * torch.bernoulli(torch.full_like(h, 0.7))
        h = F.gumbel_softmax(f(h), tau=0.8) * h
        h = h[torch.randperm(h.shape[0])] * 0.3 + h  # mixes samples
        h = torch.where(torch.rand(h.shape) < 0.8, g(h), h)
        mean, spread = h.chunk(2, 1)
        scores: Tensor = self.out(torch.cat([torch.normal(mean, 1.0) * 0.0 + mean, F.softplus(spread)], 1))
        return scores


def noisy(side: int) -> Case:
    return Case(model=seeded(Noisy), loss_fn=F.cross_entropy, batch=images(side))


class ExtraBuffers(nn.Module):
    """Running averages and counters beside batch norm's, updated in place or assigned anew, and a fixed mask."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=0.3)
        self.instance, self.out = nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.Linear(8, CLASSES)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mask", torch.ones(side, side).tril(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.norm(self.conv(x))) * self.mask
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean((0, 2, 3))
        self.steps += 1
        h = self.instance(h - self.mean[:, None, None])
        scores: Tensor = self.out(F.softsign(h).amax((2, 3)))
        return scores


def extra_buffers(side: int) -> Case:
    return Case(model=seeded(lambda: ExtraBuffers(side)), loss_fn=F.cross_entropy, batch=images(side))


class Shared(nn.Module):
    """One layer used three times, one weight used by two layers, batch norm seen twice in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.other, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.other.weight = self.block.weight
        self.act, self.out = nn.PReLU(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(2):
            h = self.act(self.norm(self.block(h))) + h
        h = self.other(self.block(h))
        scores: Tensor = self.out(h.mean((2, 3)))
        return scores


def shared(side: int) -> Case:
    return Case(model=seeded(Shared), loss_fn=F.cross_entropy, batch=images(side))


class Unused(nn.Module):
    """Parameters that never get a gradient: a branch not taken, one behind `detach`, one only printed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(48, 24), nn.Linear(24, 24), nn.Linear(24, CLASSES)
        self.idle, self.cut = nn.Linear(24, 24), nn.Linear(24, 24)
        self.spare = nn.Parameter(torch.ones(7))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(F.adaptive_max_pool2d(x, 4).flatten(1)))
        if h.shape[0] > 1000:
            h = self.idle(h)
        h = self.b(h) + self.cut(h).detach()
        scores: Tensor = self.out(torch.sigmoid(h))
        return scores


def unused(side: int) -> Case:
    return Case(model=seeded(Unused), loss_fn=F.cross_entropy, batch=images(side))


class Parametrized(nn.Module):
    """Weights that are computed: spectral norm (its vectors are buffers, written in each step) and weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv2d(3, 8, 3, 2, 1))
        self.mix, self.out = weight_norm(nn.Linear(8, 16)), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(F.mish(self.conv(x)), 2).mean((2, 3))
        scores: Tensor = self.out(F.glu(torch.cat([self.mix(h), h, h], 1), 1))
        return scores


def parametrized(side: int) -> Case:
    return Case(model=seeded(Parametrized), loss_fn=F.cross_entropy, batch=images(side))


class Volumes(nn.Module):
    """Convolutions in one and three dimensions, their pools, pixel shuffle, padding that reflects."""

    def __init__(self) -> None:
        super().__init__()
        self.solid, self.pool = nn.Conv3d(1, 4, 3, padding=1), nn.MaxPool3d((1, 2, 2))
        self.flat, self.grow = nn.Conv2d(12, 16, 3, padding=1, padding_mode="reflect"), nn.PixelShuffle(2)
        self.line, self.norm = nn.Conv1d(4, 8, 5, stride=2, dilation=2), nn.BatchNorm1d(8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.pool(self.solid(x.unsqueeze(1)))).flatten(1, 2)
        h = self.grow(self.flat(h))
        h = F.max_pool1d(F.softplus(self.norm(self.line(h.flatten(2)))), 3, 2)
        scores: Tensor = self.out(F.normalize(h, dim=1).logsumexp(2))
        return scores


def volumes(side: int) -> Case:
    return Case(model=seeded(Volumes), loss_fn=F.cross_entropy, batch=images(side))
