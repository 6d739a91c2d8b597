"""Planned against eager on the same batch: bytes by the allocator's events, interleaved seconds, every bit."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedhybrid.executor.optimizer import torch_twin
from fedhybrid.graph import allocator_events, call_loss, peak_of

if TYPE_CHECKING:
    from fedhybrid.executor.step import TrainStep

__all__ = ["Measurement", "measure_step"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What really happened.

    Attributes:
        peak_bytes: Allocator's peak of one planned step, resident bytes included.
        eager_peak_bytes: The same of one eager step with torch.optim, gradients None before it.
        step_time_s, eager_step_time_s: Medians of interleaved runs.
        gradient_error: Relative L2 distance of the planned gradient from the eager one.
        bit_identical: Parameters, buffers, optimizer state and loss after one step equal eager's bit for bit.
    """

    peak_bytes: int
    step_time_s: float
    eager_peak_bytes: int
    eager_step_time_s: float
    gradient_error: float
    bit_identical: bool

    @property
    def time_ratio(self) -> float:
        """Planned over eager seconds."""
        return self.step_time_s / self.eager_step_time_s


def measure_step(step: TrainStep, *, repeats: int) -> Measurement:
    """See `TrainStep.measure`."""
    planned_peak = step.measured_peak_bytes()
    eager = EagerStep(step)
    error = _gradient_error(step, eager)
    with step.preserved():
        torch.manual_seed(0)
        loss = step.run_example()
        torch.manual_seed(0)
        eager_loss = eager.run()
        same = torch.equal(loss, eager_loss) and eager.equals(step)
        eager_peak = step.prepared.resident_bytes + eager.allocated_peak()
        seconds: list[float] = []
        eager_seconds: list[float] = []
        for _ in range(repeats):
            eager_seconds.append(_timed(eager.run))
            seconds.append(_timed(step.run_example))
    return Measurement(
        peak_bytes=planned_peak,
        step_time_s=statistics.median(seconds),
        eager_peak_bytes=eager_peak,
        eager_step_time_s=statistics.median(eager_seconds),
        gradient_error=error,
        bit_identical=same,
    )


class EagerStep:
    """The same step in plain PyTorch on a copy of the model, from the same state."""

    def __init__(self, step: TrainStep) -> None:
        self.prepared = step.prepared
        self.model: nn.Module = copy.deepcopy(step.prepared.model)
        self.params = dict(self.model.named_parameters())
        self.names = [update.name for update in step.prepared.updates]
        self.twin = torch_twin(self.prepared.optimizer, self.params.values())
        self._load(step)

    def _load(self, step: TrainStep) -> None:
        """Takes over the step's optimizer state; the model was copied."""
        self.state = {name: {k: t.clone() for k, t in s.items()} for name, s in step.optimizer_state.items()}
        self.count = step.steps_done
        self.lr = step.lr
        if self.twin is not None:
            for group in self.twin.param_groups:
                group["lr"] = self.lr
            for name in self.names if self.count else ():
                entry: dict[str, Any] = dict(self.state[name])
                if "exp_avg" in entry:
                    entry["step"] = torch.tensor(float(self.count))
                self.twin.state[self.params[name]] = entry

    def run(self) -> Tensor:
        """One step on the example batch; gradients are None before and after."""
        loss = self._backward()
        self.count += 1
        if self.twin is not None:
            self.twin.step()
        else:
            self._own_updates()
        for param in self.params.values():
            param.grad = None
        return loss.detach()

    def _backward(self) -> Tensor:
        with torch.enable_grad():
            loss, _ = call_loss(self.model, self.prepared.loss_fn, self.prepared.example)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _own_updates(self) -> None:
        """For optimizers that torch.optim has no twin of: our rule, applied after the whole backward pass."""
        with torch.no_grad():
            for name in self.names:
                param = self.params[name]
                assert param.grad is not None
                self.prepared.optimizer.update(
                    name, param, param.grad, self.state[name], step=self.count, lr=self.lr, owned=False
                )

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of one forward and backward pass; nothing is updated but buffers."""
        self._backward()
        found = {}
        for name in self.names:
            grad = self.params[name].grad
            assert grad is not None
            found[name], self.params[name].grad = grad, None
        return found

    def allocated_peak(self) -> int:
        """Allocator's peak of one step above what was resident."""
        with allocator_events() as events:
            kept = self.run()
        del kept
        return peak_of(events)

    def equals(self, step: TrainStep) -> bool:
        """Whether every parameter, buffer and state tensor equals the planned step's bit for bit."""
        mine, theirs = _tensors(self.model), _tensors(step.prepared.model)
        pairs = [(mine[name], theirs[name]) for name in mine]
        for name in self.names:
            state = self.twin.state[self.params[name]] if self.twin is not None else self.state[name]
            pairs += [(state[key], tensor) for key, tensor in step.optimizer_state[name].items()]
        return all(torch.equal(a, b) for a, b in pairs)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, those that a state dictionary leaves out too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _gradient_error(step: TrainStep, eager: EagerStep) -> float:
    buffers = {name: buffer.clone() for name, buffer in eager.model.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        planned = step.gradients()
        torch.set_rng_state(state)
        exact = eager.gradients()
    with torch.no_grad():
        for name, buffer in eager.model.named_buffers():
            buffer.copy_(buffers[name])
    difference = sum(float((planned[n] - exact[n]).double().square().sum()) for n in exact)
    size = sum(float(g.double().square().sum()) for g in exact.values())
    return float((difference / size) ** 0.5) if size else 0.0


def _timed(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
