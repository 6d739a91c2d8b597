"""Random Fourier features and one linear layer: a kernel machine whose training is a linear problem.

Source: A. Rahimi, B. Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007; in federations as in S.
Prakash et al., "Coded Computing for Low-Latency Federated Learning over Wireless Edge Networks", IEEE JSAC 2021,
https://arxiv.org/abs/2011.06223.
The map z(x) = sqrt(2 / q) cos(x Omega + b), with Omega from N(0, 2 g) and b uniform in [0, 2 pi), has inner products
near exp(-g ||x - x'||^2). It is drawn when the model is made, so it follows from the run's seed and is never trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.parts import require_image

__all__ = ["Fourier", "FourierMap"]


class FourierMap(nn.Module):
    """The map, from (b, inputs) to (b, features); its buffers follow from torch's generator."""

    omega: Tensor
    phase: Tensor

    def __init__(self, inputs: int, features: int, gamma: float) -> None:
        super().__init__()
        self.register_buffer("omega", torch.randn(inputs, features) * math.sqrt(2.0 * gamma))
        self.register_buffer("phase", torch.rand(features) * (2.0 * math.pi))

    def forward(self, x: Tensor) -> Tensor:
        """The features; their mean square is near 1 / features, the largest magnitude at most sqrt(2 / features)."""
        scale = math.sqrt(2.0 / self.phase.shape[0])
        return torch.cos(torch.addmm(self.phase, x, self.omega)) * scale


class Fourier(nn.Module):
    """Random Fourier features and a linear layer without bias; maps (b, c, h, w) to (b, classes).

    `gamma` is the kernel's g times the number of inputs, so that one value suits images of any size.
    """

    def __init__(self, *, input_shape: tuple[int, ...], classes: int, features: int = 500, gamma: float = 2.0) -> None:
        super().__init__()
        inputs = math.prod(require_image("fourier", input_shape, least_side=4))
        problems = []
        if features < 1:
            problems.append(f"model option features must be at least 1, got {features}")
        if not (math.isfinite(gamma) and gamma > 0):
            problems.append(f"model option gamma must be positive and finite, got {gamma}")
        if problems:
            raise ConfigError(problems)
        self.map = FourierMap(inputs, features, gamma / inputs)
        self.head = nn.Linear(features, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        scores: Tensor = self.head(self.map(x.flatten(1)))
        return scores
