"""Each optimizer's arithmetic is torch.optim's, whatever the options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedhybrid as fh
from fedhybrid.executor.optimizer import torch_twin

lrs, decays = st.floats(1e-5, 1.0), st.sampled_from([0.0, 1e-4, 0.1])
betas = st.tuples(st.floats(0.0, 0.999), st.floats(0.5, 0.9999))
sgd = st.builds(fh.SGD, lr=lrs, momentum=st.floats(0.01, 0.99), nesterov=st.booleans(), weight_decay=decays)
plain = st.builds(fh.SGD, lr=lrs, weight_decay=decays)
adam = st.builds(fh.Adam, lr=lrs, betas=betas, eps=st.floats(1e-12, 1e-3), weight_decay=decays)
adamw = st.builds(fh.AdamW, lr=lrs, betas=betas, eps=st.floats(1e-12, 1e-3), weight_decay=decays)


@settings(max_examples=60)
@given(
    st.one_of(sgd, plain, adam, adamw),
    st.booleans(),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_same_bits_as_torch_optim(optimizer: Any, owned: bool, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(7, 13, generator=generator).to(dtype)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    twin = torch_twin(optimizer, [theirs])
    assert twin is not None
    state = optimizer.init_state(ours)
    for step in range(1, 6):
        grad = torch.randn(7, 13, generator=generator) * (10.0 ** float(torch.randint(-4, 3, (), generator=generator)))
        grad = grad.to(dtype)
        theirs.grad = grad.clone()
        twin.step()
        given_grad = grad.clone()
        optimizer.update("w", ours, given_grad, state, step=step, lr=optimizer.lr, owned=owned)
        if not owned:
            assert torch.equal(given_grad, grad), "a gradient that others may read was overwritten"
        assert torch.equal(ours, theirs.detach())
        for name, tensor in state.items():
            assert torch.equal(tensor, twin.state[theirs][name]), name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fh.SGD(lr=-1.0), ["lr must not be negative"]),
        (lambda: fh.SGD(lr=float("nan")), ["lr must not be negative"]),
        (lambda: fh.SGD(lr=0.1, nesterov=True, weight_decay=-1), ["weight_decay", "nesterov=True needs"]),
        (lambda: fh.Adam(betas=(1.0, 0.9), eps=-1), ["eps", "betas must lie in [0, 1), got 1.0"]),
        (lambda: fh.AdamW(betas=(0.9, 2.0)), ["betas must lie in [0, 1), got 2.0"]),
    ],
)
def test_bad_options_are_named_all_at_once(make: Any, words: list[str]) -> None:
    with pytest.raises(fh.ConfigError) as caught:
        make()
    assert len(caught.value.problems) == len(words)
    for word in words:
        assert word in str(caught.value)
