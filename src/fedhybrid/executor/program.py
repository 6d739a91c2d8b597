"""Runs a plan's program on a batch: once, or once for each micro-batch with the updates at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from fedhybrid.codecs import BoundCodec
from fedhybrid.executor.bound import BoundModel
from fedhybrid.executor.clip import clip_coefficient
from fedhybrid.executor.micro import joined_shape, parts_of
from fedhybrid.executor.running import Apply
from fedhybrid.graph import BatchSpec
from fedhybrid.planner import Update

if TYPE_CHECKING:
    from fedhybrid.executor.naming import Meaning
    from fedhybrid.planner import Solution

__all__ = ["AuxLayout", "Program", "ProgramRunner"]

StepFunction = Callable[
    [list[Tensor], list[Tensor], list[Tensor], Callable[[int, Tensor], None], Callable[[list[Tensor]], None]],
    tuple[Any, Any],
]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A generated step: `run(params, buffers, batch, update, clip) -> (loss, aux)`, to be called under `no_grad`.

    `clip(gradients)` is called once, before the first update, where the problem holds gradients back, with one gradient
    per update in order; it may change them in place.

    Attributes:
        run: The function.
        source: Its text.
        table: What the names in the text stand for.
        codecs: Those of the tensors that wait packed.
    """

    run: StepFunction
    source: str
    table: Mapping[str, Meaning]
    codecs: tuple[BoundCodec, ...]


@dataclass(frozen=True, kw_only=True)
class AuxLayout:
    """Shape and type of what the loss function returns beside the loss, for one program run."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@final
class ProgramRunner:
    """A compiled plan of one batch shape.

    Attributes:
        program: What runs once for each micro-batch.
        spec: Of the whole batch.
        updates: The optimizer's, as the program numbers them.
        aux: Of one micro-batch; None where there is none.
        found: The plan's decisions and schedule; None where the program was made by another process.
    """

    def __init__(
        self,
        *,
        program: Program,
        spec: BatchSpec,
        updates: Sequence[Update],
        clip_norm: float | None,
        micro_batches: int,
        aux: AuxLayout | None,
        found: Solution | None = None,
    ) -> None:
        self.found = found
        self.program, self.spec, self.updates, self.aux = program, spec, updates, aux
        self._clip_norm, self._micro_batches = clip_norm, micro_batches

    @property
    def codecs(self) -> Sequence[BoundCodec]:
        """Those of the tensors that wait packed."""
        return self.program.codecs

    @property
    def source(self) -> str:
        """The generated program as text."""
        return self.program.source

    def run(self, bound: BoundModel, batch: Any, apply: Apply) -> tuple[Tensor, Tensor | None]:
        """One step: loss and auxiliary output; `apply` gets every parameter's final gradient.

        Raises:
            ConfigError: The batch is not of the shapes that the program was made for.
        """
        tensors = self.spec.flatten(batch)
        with torch.no_grad():
            if self._micro_batches > 1:
                return self._in_parts(bound, tensors, apply)
            if self._clip_norm is None:
                update = partial(self._update, apply)
                loss, aux = self.program.run(bound.params, bound.buffers, tensors, update, _no_clip)
            else:
                clipped = _Clipped(self._clip_norm, bound, self.updates, apply)
                loss, aux = self.program.run(bound.params, bound.buffers, tensors, clipped.update, clipped.clip)
        return loss, aux

    def _update(self, apply: Apply, index: int, grad: Tensor) -> None:
        update = self.updates[index]
        apply(update.name, grad, update.owned)

    def _in_parts(self, bound: BoundModel, tensors: list[Tensor], apply: Apply) -> tuple[Tensor, Tensor | None]:
        sums = [torch.empty_like(bound.by_name[update.name]) for update in self.updates]
        total, joined = None, self._room_for_aux()
        for part, piece in enumerate(parts_of(tensors, self._micro_batches)):
            add = partial(_set if part == 0 else _add, sums)
            loss, aux = self.program.run(bound.params, bound.buffers, piece, add, _no_clip)
            total = loss if total is None else total.add_(loss)
            if joined is not None and aux is not None:
                joined.narrow(0, part * len(aux), len(aux)).copy_(aux)
            del loss, aux
        if self._clip_norm is not None:
            coefficient = clip_coefficient(sums, [bound.by_name[u.name] for u in self.updates], self._clip_norm)
            for grad in sums:
                grad.mul_(coefficient)
            del grad
        for update in self.updates:
            apply(update.name, sums.pop(0), True)
        assert total is not None
        return total, joined

    def _room_for_aux(self) -> Tensor | None:
        """For the auxiliary outputs of all micro-batches."""
        if self.aux is None:
            return None
        return torch.empty(joined_shape(self.aux.shape, self._micro_batches), dtype=self.aux.dtype)


def _set(sums: list[Tensor], index: int, grad: Tensor) -> None:
    sums[index].copy_(grad)


def _add(sums: list[Tensor], index: int, grad: Tensor) -> None:
    sums[index].add_(grad)


class _Clipped:
    """Scales what it may in place when all gradients are there, and the others when their update comes."""

    def __init__(self, clip_norm: float, bound: BoundModel, updates: Sequence[Update], apply: Apply) -> None:
        self._clip_norm, self._bound, self._updates, self._apply = clip_norm, bound, updates, apply
        self._coefficient = 1.0

    def clip(self, gradients: list[Tensor]) -> None:
        params = [self._bound.by_name[update.name] for update in self._updates]
        self._coefficient = clip_coefficient(gradients, params, self._clip_norm)
        for update, grad in zip(self._updates, gradients, strict=True):
            if update.owned:
                grad.mul_(self._coefficient)

    def update(self, index: int, grad: Tensor) -> None:
        update = self._updates[index]
        self._apply(update.name, grad if update.owned else grad * self._coefficient, True)


def _no_clip(gradients: list[Tensor]) -> None:
    """For programs whose updates do not wait for each other."""
