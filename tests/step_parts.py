"""What the tests of the memory engine share: small models, and the same training in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedhybrid as fh
from fedhybrid.executor.optimizer import torch_twin
from fedhybrid.graph import call_loss
from fedhybrid.models import build_model

SMALL: dict[str, dict[str, Any]] = {
    "bert": {"depth": 2, "dim": 16, "heads": 2},
    "char-gpt": {"depth": 1, "dim": 16, "heads": 2},
    "char-lstm": {"hidden": 12},
    "cnn": {"width": 0.5},
    "cnn1d": {"width": 0.5},
    "fourier": {"features": 64},
    "mobilenet_v2": {"width": 0.25},
    "resnet18": {"width": 0.125},
    "resnet20": {"width": 0.5},
    "vit": {"depth": 3, "dim": 24, "heads": 3},
}
IMAGE = (3, 16, 16)
OTHER_INPUTS: dict[str, tuple[int, ...]] = {
    "bert": (12,),
    "char-gpt": (12,),
    "char-lstm": (6,),
    "cnn1d": (3, 16),
}
CLASSES = 10
UNFUSED = ("char-lstm",)  # captured without oneDNN's fused recurrent kernels, whose bits are others
OPTIMIZERS = {
    "sgd": fh.SGD(lr=0.05, momentum=0.9),
    "sgd-plain": fh.SGD(lr=0.05),
    "sgd-nesterov-decay": fh.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": fh.Adam(lr=1e-3, weight_decay=1e-2),
    "adamw": fh.AdamW(lr=1e-3),
}


def small_model(name: str, **options: Any) -> nn.Module:
    shape = OTHER_INPUTS.get(name, IMAGE)
    return build_model(name, input_shape=shape, classes=CLASSES, seed=0, options=SMALL[name] | options)


def example_inputs(shape: tuple[int, ...], batch: int, generator: torch.Generator, classes: int = CLASSES) -> Tensor:
    """Samples as data sets make them: one dimension is a text, with as many tokens as classes."""
    if len(shape) == 1:
        return torch.randint(0, classes, (batch, *shape), generator=generator)
    return torch.randn(batch, *shape, generator=generator)


def small_batch(name: str, batch: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A batch that `small_model(name)` takes."""
    generator = torch.Generator().manual_seed(seed)
    x = example_inputs(OTHER_INPUTS.get(name, IMAGE), batch, generator)
    return x, torch.randint(0, CLASSES, (batch,), generator=generator)


def as_captured(name: str) -> AbstractContextManager[Any]:
    """Eager PyTorch with the kernels that the captured step has."""
    return torch.backends.mkldnn.flags(enabled=False, allow_tf32=None) if name in UNFUSED else nullcontext()


def image_batch(batch: int = 4, side: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, side, side, generator=generator)
    return x, torch.randint(0, 10, (batch,), generator=generator)


def eager_training(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batches: list[Any],
    optimizer: Any,
    *,
    clip_norm: float | None = None,
    micro_batches: int = 1,
) -> tuple[nn.Module, torch.optim.Optimizer, list[Tensor]]:
    """A copy of `model` after plain training on `batches`, with torch's generator seeded to 0 at the start.

    `optimizer` is one of ours, or a function that makes a torch optimizer for the copy.
    """
    model = copy.deepcopy(model)
    twin = optimizer(model) if not hasattr(optimizer, "lr") else torch_twin(optimizer, model.named_parameters())
    assert twin is not None
    losses = []
    torch.manual_seed(0)
    for batch in batches:
        twin.zero_grad(set_to_none=True)
        total = None
        for part in range(micro_batches):
            loss, _ = call_loss(model, loss_fn, _part(batch, part, micro_batches))
            loss = loss if micro_batches == 1 else loss / micro_batches
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        twin.step()
        losses.append(total)
    return model, twin, losses


def _part(batch: Any, part: int, micro_batches: int) -> Any:
    if micro_batches == 1:
        return batch
    if isinstance(batch, dict):
        return {key: tensor.chunk(micro_batches)[part] for key, tensor in batch.items()}
    return tuple(tensor.chunk(micro_batches)[part] for tensor in batch)


def planned_training(step: fh.TrainStep, batches: list[Any]) -> list[Tensor]:
    torch.manual_seed(0)
    return [step(batch) if isinstance(batch, dict) else step(*batch) for batch in batches]


def assert_same_bits(step: fh.TrainStep, losses: list[Tensor], eager: tuple[Any, Any, list[Tensor]]) -> None:
    """Losses, parameters, buffers and optimizer state equal those of `eager_training` bit for bit."""
    model, twin, eager_losses = eager
    assert torch.equal(torch.stack(losses), torch.stack(eager_losses))
    expected, found = model.state_dict(), step.prepared.model.state_dict()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    for name, param in model.named_parameters():
        if name in step.state.counts and not step.state.counts[name]:
            assert not twin.state.get(param), f"{name} was never updated"
            continue
        for key, tensor in step.optimizer_state.get(name, {}).items():
            assert torch.equal(tensor, twin.state[param][key]), (name, key)


def assert_plan_holds(step: fh.TrainStep, budget_bytes: int | None = None) -> None:
    """The allocator's peak of a real step is the planned one, byte for byte, and within the budget."""
    assert step.measured_peak_bytes() == step.plan.peak_bytes
    if budget_bytes is not None:
        assert step.plan.peak_bytes <= budget_bytes


cross_entropy = F.cross_entropy
