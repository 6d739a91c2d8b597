"""The proximal term against autograd of the proximal objective."""

from __future__ import annotations

import pytest
import torch

from fedhybrid.executor import SGD, Adam, AdamW, Proximal
from fedhybrid.protocols import Optimizer

MU, LR = 0.3, 0.1
TWINS = {
    "sgd": (SGD(lr=LR, momentum=0.9), lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, foreach=False)),
    "adam": (Adam(lr=LR), lambda p: torch.optim.Adam(p, lr=LR, foreach=False)),
    "adamw": (AdamW(lr=LR), lambda p: torch.optim.AdamW(p, lr=LR, foreach=False)),
}


def descend(optimizer: Optimizer, start: torch.Tensor, gradients: list[torch.Tensor], *, owned: bool) -> torch.Tensor:
    param = start.clone()
    state = optimizer.init_state(param)
    for step, gradient in enumerate(gradients, start=1):
        grad = gradient.clone()
        optimizer.update("w", param, grad, state, step=step, lr=LR, owned=owned)
        assert owned or torch.equal(grad, gradient)  # somebody else's memory is not written to
    assert torch.equal(state["anchor"], start)
    return param


@pytest.fixture
def path() -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, generator=generator), [torch.randn(5, 3, generator=generator) for _ in range(6)]


@pytest.mark.parametrize("name", sorted(TWINS))
def test_is_the_gradient_of_the_proximal_objective(name: str, path: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    start, slopes = path
    base, make_twin = TWINS[name]
    weights = start.clone().requires_grad_()
    twin = make_twin([weights])
    for slope in slopes:  # a linear loss has the given gradient everywhere
        twin.zero_grad()
        ((weights * slope).sum() + MU / 2 * (weights - start).square().sum()).backward()
        twin.step()
    found = descend(Proximal(base=base, mu=MU), start, slopes, owned=True)
    torch.testing.assert_close(found, weights.detach(), rtol=1e-5, atol=1e-6)


def test_owned_or_not_gives_the_same_bits(path: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    optimizer = Proximal(base=SGD(lr=LR, momentum=0.9), mu=MU)
    assert torch.equal(descend(optimizer, *path, owned=True), descend(optimizer, *path, owned=False))


def test_no_pull_is_the_base(path: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    start, slopes = path
    param, base = start.clone(), SGD(lr=LR)
    for step, slope in enumerate(slopes, start=1):
        base.update("w", param, slope.clone(), {}, step=step, lr=LR, owned=True)
    assert torch.equal(descend(Proximal(base=base, mu=0.0), start, slopes, owned=True), param)


def test_state_is_the_anchor_and_the_bases() -> None:
    optimizer = Proximal(base=Adam(lr=LR), mu=MU)
    assert optimizer.state_names == ("anchor", "exp_avg", "exp_avg_sq")
    assert tuple(optimizer.init_state(torch.ones(2))) == optimizer.state_names
    assert optimizer.lr == LR
