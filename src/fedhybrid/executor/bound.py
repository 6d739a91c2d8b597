"""The tensors of a live model that a program works on, followed when the user moves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.graph import StepGraph

__all__ = ["BoundModel"]


@final
class BoundModel:
    """A model's parameters and buffers in the program's order.

    A model's tensors can be exchanged behind a step's back (`load_state_dict(assign=True)`, `param.data = ...`,
    `model.double()`); `refresh` notices that and binds again, or says why it cannot.

    Attributes:
        params, buffers: Detached, in the order of the graph.
        by_name: Parameters by name.
    """

    def __init__(self, model: nn.Module, graph: StepGraph) -> None:
        self._model, self._graph = model, graph
        self._slots: list[tuple[Mapping[str, Tensor | None], str, Tensor, int]] = []
        self._bind()

    def refresh(self) -> None:
        """Binds again if a tensor was exchanged.

        Raises:
            ConfigError: The new tensor has another shape, type, stride or device; the step must be compiled again.
        """
        for owner, key, tensor, address in self._slots:
            if owner.get(key) is not tensor or tensor.data_ptr() != address:
                self._bind()
                return

    def _bind(self) -> None:
        found: dict[str, Tensor] = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        wanted = {**self._graph.params, **self._graph.buffers}
        problems = []
        for name, value in wanted.items():
            v, tensor = self._graph.values[value], found.get(name)
            if tensor is None:
                problems.append(f"the model has no {name!r} any more; compile the step again")
            elif (tuple(tensor.shape), tensor.stride(), tensor.dtype) != (v.shape, v.stride, v.dtype):
                problems.append(
                    f"{name!r} was compiled as {v.dtype} {list(v.shape)} and is now {tensor.dtype} "
                    f"{list(tensor.shape)}; compile the step again"
                )
            elif tensor.device.type != "cpu":
                problems.append(f"{name!r} is on {tensor.device}; a step runs on the CPU in this version")
        if problems:
            raise ConfigError(problems)
        self.params = [found[name].detach() for name in self._graph.params]
        self.buffers = [found[name] for name in self._graph.buffers]
        self.by_name = dict(zip(self._graph.params, self.params, strict=True))
        self._slots = []
        for path, tensor in ((name, found[name]) for name in wanted):
            module = self._model.get_submodule(path.rpartition(".")[0])
            key = path.rpartition(".")[2]
            owner: Mapping[str, Tensor | None] = module._parameters if key in module._parameters else module._buffers
            self._slots.append((owner, key, tensor, tensor.data_ptr()))
