"""The captured steps of a run's submodels, each made when it is first asked for."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, final

from fedhybrid.engine.runtime import Station
from fedhybrid.executor import PreparedStep, TrainStep, prepare_step
from fedhybrid.opwork import OpWork
from fedhybrid.planner import CostTable
from fedhybrid.protocols import Method, Submodel
from fedhybrid.tree import buffers_of, tensors_of

__all__ = ["Submodels", "captured_step"]

T = TypeVar("T")
_REMEMBERED = 64


def captured_step(
    submodel: Submodel, example: Any, op_seconds: Callable[[OpWork], float], *, known: CostTable | None = None
) -> PreparedStep:
    """The training step of a submodel. Nothing is timed here: plan books price it for each device.

    Args:
        submodel: What is trained.
        example: A batch of the run's shapes.
        op_seconds: Any prices.
        known: Of another step of the run: calls that both make are not profiled again.

    Raises:
        CaptureError: It cannot be captured.
    """
    return prepare_step(
        submodel.module,
        submodel.loss_fn,
        example,
        submodel.optimizer,
        op_seconds=op_seconds,
        known=known,
        forward_only=submodel.forward_only,
    )


@final
class Submodels:
    """Builds submodels by their names, captures their steps, and makes places to train in of them.

    Those that have not been asked for longest are forgotten: what is asked for again is captured again, alike.
    """

    def __init__(self, method: Method, whole: Submodel, example: Any, op_seconds: Callable[[OpWork], float]) -> None:
        """Captures nothing yet.

        Args:
            method: Knows its submodels.
            whole: The run's own step.
            example: A batch of the run's shapes.
            op_seconds: Any prices.
        """
        self.whole = whole
        self._method, self._example, self._op_seconds = method, example, op_seconds
        self._known: CostTable | None = None
        self._prepared: OrderedDict[str, PreparedStep] = OrderedDict()
        self._stations: OrderedDict[str, Station] = OrderedDict()

    def prepared(self, name: str) -> PreparedStep:
        """The captured step of a submodel; "" is the whole.

        Raises:
            CaptureError: It cannot be captured.
        """
        if name not in self._prepared:
            submodel = self._method.submodel(self.whole, name)
            prepared = captured_step(submodel, self._example, self._op_seconds, known=self._known)
            self._prepared[name], self._known = prepared, prepared.costs
        return _kept(self._prepared, name)

    def station(self, name: str) -> Station:
        """A place to train a submodel in."""
        if name not in self._stations:
            prepared = self.prepared(name)
            self._stations[name] = Station(
                step=TrainStep(prepared, prepared.keep_all()),
                tensors=tensors_of(prepared.model),
                buffers=buffers_of(prepared.model),
            )
        return _kept(self._stations, name)

    def apart(self) -> Submodels:
        """The same steps on models of their own, for a second task at the same time."""
        other = Submodels(
            self._method,
            replace(self.whole, module=copy.deepcopy(self.whole.module)),
            self._example,
            self._op_seconds,
        )
        other._prepared.update(
            (name, replace(prepared, model=copy.deepcopy(prepared.model))) for name, prepared in self._prepared.items()
        )
        return other


def _kept(kept: OrderedDict[str, T], name: str) -> T:
    """What is kept under a name, the last to be forgotten now."""
    kept.move_to_end(name)
    while len(kept) > _REMEMBERED:
        kept.popitem(last=False)
    return kept[name]
