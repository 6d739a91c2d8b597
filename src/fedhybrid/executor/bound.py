"""The tensors of a live model that a step works on, followed when the user moves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.graph import StepGraph

__all__ = ["BoundModel", "Layouts", "put_back"]

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Shape, strides and type of every parameter and buffer by name, in the model's order."""

    params: Mapping[str, Layout]
    buffers: Mapping[str, Layout]

    @classmethod
    def of_graph(cls, graph: StepGraph) -> Layouts:
        """As a step was captured."""

        def layouts(values: Mapping[str, int]) -> dict[str, Layout]:
            found = {name: graph.values[value] for name, value in values.items()}
            return {name: (v.shape, v.stride, v.dtype) for name, v in found.items()}

        return cls(params=layouts(graph.params), buffers=layouts(graph.buffers))

    @classmethod
    def of_model(cls, model: nn.Module) -> Layouts:
        """As the model is now."""
        return cls(
            params={name: _layout(tensor) for name, tensor in model.named_parameters()},
            buffers={name: _layout(tensor) for name, tensor in model.named_buffers()},
        )


def _layout(tensor: Tensor) -> Layout:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


@final
class BoundModel:
    """A model's parameters and buffers in the step's order.

    A model's tensors can be exchanged behind a step's back (`load_state_dict(assign=True)`, `param.data = ...`,
    `model.double()`); `refresh` notices that and binds again, or says why it cannot.

    Attributes:
        params, buffers: In the order of the layouts; parameters detached.
        by_name: Parameters by name, detached.
        leaves: Parameters by name, as the model has them.
    """

    def __init__(self, model: nn.Module, layouts: Layouts) -> None:
        self._model, self._layouts = model, layouts
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
        leaves = dict(self._model.named_parameters())
        found: dict[str, Tensor] = {**leaves, **dict(self._model.named_buffers())}
        wanted = {**self._layouts.params, **self._layouts.buffers}
        problems = []
        for name, layout in wanted.items():
            tensor = found.get(name)
            if tensor is None:
                problems.append(f"the model has no {name!r} any more; compile the step again")
            elif _layout(tensor) != layout:
                problems.append(
                    f"{name!r} was compiled as {layout[2]} {list(layout[0])} and is now {tensor.dtype} "
                    f"{list(tensor.shape)}; compile the step again"
                )
            elif tensor.device.type != "cpu":
                problems.append(f"{name!r} is on {tensor.device}; a step runs on the CPU in this version")
        if problems:
            raise ConfigError(problems)
        self.leaves = {name: leaves[name] for name in self._layouts.params}
        self.params = [leaf.detach() for leaf in self.leaves.values()]
        self.buffers = [found[name] for name in self._layouts.buffers]
        self.by_name = dict(zip(self.leaves, self.params, strict=True))
        self._slots = []
        for path, tensor in ((name, found[name]) for name in wanted):
            module = self._model.get_submodule(path.rpartition(".")[0])
            key = path.rpartition(".")[2]
            owner: Mapping[str, Tensor | None] = module._parameters if key in module._parameters else module._buffers
            self._slots.append((owner, key, tensor, tensor.data_ptr()))


@contextmanager
def put_back(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Gives the tensors their content again when the block ends, and torch's generator its state."""
    copies = [t.detach().clone() for t in tensors]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, copy in zip(tensors, copies, strict=True):
                    tensor.copy_(copy)
