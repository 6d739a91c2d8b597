"""The step as people write it in PyTorch: what planned steps are compared with."""

from __future__ import annotations

import copy
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from fedhybrid.executor.micro import parts_of, scaled_loss
from fedhybrid.executor.optimizer import torch_twin
from fedhybrid.executor.running import Preparation
from fedhybrid.executor.state import OptimizerState
from fedhybrid.graph import allocator_events, call_loss, peak_of

__all__ = ["EagerStep"]


@final
class EagerStep:
    """The same step in plain PyTorch with torch.optim on a copy of the model, from the same state.

    A batch in several micro-batches is the loop `(loss_fn(model(x), y) / k).backward()`; clipping is
    `torch.nn.utils.clip_grad_norm_` before the optimizer's step.
    """

    def __init__(self, prepared: Preparation, state: OptimizerState) -> None:
        self.prepared = prepared
        self.model: nn.Module = copy.deepcopy(prepared.model)
        self.params = dict(self.model.named_parameters())
        self.names = prepared.trained
        self.twin = torch_twin(prepared.optimizer, self.params.items())
        self._load(state)

    def _load(self, state: OptimizerState) -> None:
        """Takes over the step's optimizer state; the model was copied."""
        self.state = {name: {k: t.clone() for k, t in s.items()} for name, s in state.tensors.items()}
        self.counts = dict(state.counts)
        self.lrs = {name: state.lr_of(name) for name in self.names}
        if self.twin is None:
            return
        for group, lr in zip(self.twin.param_groups, state.lrs, strict=True):
            group["lr"] = lr
        for name in self.names:
            if self.counts[name]:
                entry: dict[str, Any] = dict(self.state[name])
                if "exp_avg" in entry:
                    entry["step"] = torch.tensor(float(self.counts[name]))
                self.twin.state[self.params[name]] = entry

    def run(self) -> Tensor:
        """One step on the example batch; gradients are None before and after."""
        loss = self._backward()
        if self.twin is not None:
            self.twin.step()
        else:
            self._own_updates()
        for param in self.params.values():
            param.grad = None
        return loss

    def _backward(self) -> Tensor:
        count = self.prepared.micro_batches
        loss_fn = scaled_loss(self.prepared.loss_fn, count)
        leaves, structure = pytree.tree_flatten(self.prepared.example)
        total, outputs = None, []
        for part in [leaves] if count == 1 else parts_of(leaves, count):
            with torch.enable_grad():
                loss, aux = call_loss(self.model, loss_fn, pytree.tree_unflatten(part, structure))
                loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total.add_(loss.detach())
            outputs.append(aux)
            del loss, aux
        if count > 1 and outputs[0] is not None:
            outputs = [torch.cat([aux for aux in outputs if aux is not None])]
        if self.prepared.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params.values(), self.prepared.clip_norm)
        assert total is not None
        return total

    def _own_updates(self) -> None:
        """For optimizers that torch.optim has no twin of: our rule, applied after the whole backward pass."""
        with torch.no_grad():
            for name in self.names:
                param = self.params[name]
                if param.grad is None:
                    continue
                self.counts[name] += 1
                self.prepared.optimizer.update(
                    name,
                    param,
                    param.grad,
                    self.state[name],
                    step=self.counts[name],
                    lr=self.lrs[name],
                    owned=False,
                )

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of one forward and backward pass; nothing is updated but buffers."""
        self._backward()
        found = {}
        for name in self.names:
            grad = self.params[name].grad
            if grad is not None:
                found[name], self.params[name].grad = grad, None
        return found

    def allocated_peak(self) -> int:
        """Allocator's peak of one step above what was resident."""
        with allocator_events() as events:
            kept = self.run()
        del kept
        return peak_of(events)

    def equals(self, model: nn.Module, state: OptimizerState) -> bool:
        """Whether every parameter, buffer and state tensor equals the planned step's bit for bit."""
        mine, theirs = _tensors(self.model), _tensors(model)
        pairs = [(mine[name], theirs[name]) for name in mine]
        for name in self.names:
            if state.counts[name]:
                own = self.twin.state[self.params[name]] if self.twin is not None else self.state[name]
                pairs += [(own[key], tensor) for key, tensor in state.tensors[name].items()]
        return all(torch.equal(a, b) for a, b in pairs)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, those that a state dictionary leaves out too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
