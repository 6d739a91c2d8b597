"""The optimizer's side of a step: state tensors, counters and learning rates of every parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.executor.bound import BoundModel
from fedhybrid.executor.groups import assign_groups
from fedhybrid.executor.optimizer import groups_of, torch_twin
from fedhybrid.protocols import Optimizer

__all__ = ["OptimizerState"]


@final
class OptimizerState:
    """State tensors of an optimizer for the trained parameters of one model.

    Attributes:
        tensors: State by parameter name; the step's own, not copies.
        counts: Updates of each parameter since its state was fresh (a parameter without gradient is not updated).
        steps: Steps since the state was fresh.
        lrs: Learning rate of each group, in the order of `state_dict()["param_groups"]`.
        lr: The optimizer's own learning rate now; groups without one have it too.
    """

    def __init__(self, optimizer: Optimizer, bound: BoundModel, trained: Sequence[str]) -> None:
        self._optimizer, self._bound, self._trained = optimizer, bound, tuple(trained)
        shapes = {name: tuple(param.shape) for name, param in bound.by_name.items()}
        self._layout = assign_groups(groups_of(optimizer), shapes)
        self._rules = {name: optimizer.rule_for(name, shapes[name]) for name in shapes}
        self._group_of = {name: i for i, (_, names) in enumerate(self._layout) for name in names}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.reset()
        self.lr = optimizer.lr
        self.set_lr(optimizer.lr)

    def reset(self) -> None:
        """Fresh state, from the parameters as they are now; the memory is reused."""
        for name in self._trained:
            made = self._rules[name].init_state(self._bound.by_name[name])
            old = self.tensors.get(name)
            self.tensors[name] = made if old is None else {k: old[k].copy_(t) for k, t in made.items()}
        self.counts = dict.fromkeys(self._trained, 0)
        self.steps = 0

    def apply(self, name: str, grad: Tensor, owned: bool) -> None:
        """Updates one parameter in place. To be called under `no_grad`.

        Args:
            name: Of the parameter.
            grad: Its whole gradient.
            owned: The gradient's memory may be overwritten.
        """
        count = self.counts[name] + 1
        self._rules[name].update(
            name, self._bound.by_name[name], grad, self.tensors[name], step=count, lr=self.lr_of(name), owned=owned
        )
        self.counts[name] = count

    def lr_of(self, name: str) -> float:
        """The learning rate of a parameter now."""
        return self.lrs[self._group_of[name]]

    def set_lr(self, lr: float | Sequence[float]) -> None:
        """Changes the learning rate: the optimizer's own, by whose factor groups with their own follow; or one a group.

        Raises:
            ConfigError: Negative or not finite, or not as many as groups.
        """
        given = list(lr) if isinstance(lr, Sequence) else [lr]
        problems = [
            f"lr must not be negative and must be a finite number, got {x!r}"
            for x in given
            if not isinstance(x, (int, float)) or not 0 <= x < math.inf
        ]
        if isinstance(lr, Sequence) and len(lr) != len(self._layout):
            problems.append(f"lr must be one number, or one for each of the {len(self._layout)} groups, got {lr!r}")
        if problems:
            raise ConfigError(problems)
        if isinstance(lr, Sequence):
            self.lrs = list(lr)
            self.lr = next((x for x, (n, _) in zip(lr, self._layout, strict=True) if self._follows(n)), self.lr)
        else:
            self.lr = lr
            self.lrs = [
                lr if self._follows(number) else self._rules[names[0]].lr * (lr / self._optimizer.lr)
                for number, names in self._layout
            ]

    def _follows(self, number: int) -> bool:
        """Whether a group has the optimizer's own learning rate."""
        return number < 0 or groups_of(self._optimizer)[number].lr is None

    def set_count(self, least: int) -> None:
        """Counts at least so many updates of every parameter."""
        self.counts = {name: max(count, least) for name, count in self.counts.items()}
        self.steps = max(self.steps, least)

    def all_tensors(self) -> Iterable[Tensor]:
        """Every state tensor."""
        return (tensor for tensors in self.tensors.values() for tensor in tensors.values())

    def state_dict(self) -> dict[str, Any]:
        """The state in torch.optim's layout, copied; parameters are numbered group after group, as there."""
        names = [name for _, members in self._layout for name in members]
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(names):
            if self.counts.get(name):
                state[index] = {k: t.clone() for k, t in self.tensors[name].items()}
                if "exp_avg" in state[index]:
                    state[index]["step"] = torch.tensor(float(self.counts[name]))
        twin = torch_twin(self._optimizer, self._bound.by_name.items())
        if twin is not None:
            groups = twin.state_dict()["param_groups"]
        else:
            number = iter(range(len(names)))
            groups = [{"params": [next(number) for _ in members]} for _, members in self._layout]
        groups = [{**group, "lr": lr} for group, lr in zip(groups, self.lrs, strict=True)]
        return {"state": state, "param_groups": groups, "steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over state from `state_dict()`, or from a torch.optim optimizer of the same kind and groups.

        Raises:
            ConfigError: State of another kind of optimizer or for other parameters or groups.
        """
        names = [name for _, members in self._layout for name in members]
        sizes = [len(members) for _, members in self._layout]
        groups = state_dict.get("param_groups") or []
        given = dict(zip(names, _entries(state_dict, groups, len(names)), strict=True))
        problems = []
        if [len(group.get("params", ())) for group in groups] != sizes or not all("lr" in group for group in groups):
            wanted = " and ".join(f"one of {size} parameters" for size in sizes)
            problems.append(f"optimizer state needs as parameter groups, each with its lr: {wanted}")
        for name in self._trained:
            for key, tensor in self.tensors[name].items():
                found = given[name].get(key)
                if given[name] and (found is None or found.shape != tensor.shape):
                    problems.append(f"optimizer state of {name!r} needs {key!r} of shape {tuple(tensor.shape)}")
        if problems:
            raise ConfigError(problems)
        self.reset()
        self.set_lr([float(group["lr"]) for group in groups])
        self.steps = int(state_dict.get("steps", max((_count(entry) for entry in given.values()), default=0)))
        for name in self._trained:
            entry = given[name]
            for key, tensor in self.tensors[name].items() if entry else ():
                tensor.copy_(entry[key])
            self.counts[name] = max(_count(entry), self.steps) if entry and "step" not in entry else _count(entry)
            if not self.tensors[name]:  # nothing is stored for rules without state
                self.counts[name] = self.steps


def _entries(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """State of each parameter in the order of the groups; empty where there is none (or None stands for none)."""
    state = state_dict.get("state", {})
    numbers = [number for group in groups for number in group.get("params", ())][:count]
    found = [{k: v for k, v in state.get(number, {}).items() if v is not None} for number in numbers]
    return found + [{}] * (count - len(found))


def _count(entry: Mapping[str, Any]) -> int:
    """How often a parameter was updated, as far as its saved state says."""
    return int(entry["step"]) if "step" in entry else int(bool(entry))
