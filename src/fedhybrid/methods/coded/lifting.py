"""Random Fourier features on top of a frozen network, where its own features make a hard linear problem."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import Tensor, nn

from fedhybrid.methods.coded.steps import layer_of, replaced
from fedhybrid.models.fourier import FourierMap
from fedhybrid.models.weights import head_of
from fedhybrid.seeds import derive_seed

__all__ = ["Standard", "lifted"]


class Standard(nn.Module):
    """Takes the mean of each feature away and divides all by one scale."""

    mean: Tensor
    scale: Tensor

    def __init__(self, seen: Tensor) -> None:
        """From features of some samples, (samples, features)."""
        super().__init__()
        mean = seen.mean(dim=0)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", (seen - mean).square().mean().sqrt().clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """Features of mean 0 and variance 1, over the samples that it was made from."""
        return (features - self.mean) / self.scale


def lifted(model: nn.Module, sample: Tensor, features: int, gamma: float) -> nn.Module:
    """A copy in whose last layer's place there are random Fourier features and a new linear layer without bias.

    Args:
        model: Ends in a linear layer (`steps.check_head`).
        sample: Inputs, from whose features mean and scale are taken.
        features: How many.
        gamma: Of the kernel, times the number of features below; see `models/fourier.py`.
    """
    made = copy.deepcopy(model).eval()
    path = head_of(made)
    head = layer_of(made, path)
    made = replaced(made, path, nn.Identity())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(_fingerprint(head), purpose="lift"))
        standard = Standard(made(sample))
        raised = FourierMap(head.in_features, features, gamma / head.in_features)
        made = replaced(made, path, nn.Sequential(standard, raised, nn.Linear(features, head.out_features, bias=False)))
    return made.train(model.training)


def _fingerprint(head: nn.Linear) -> int:
    content = head.weight.detach().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
