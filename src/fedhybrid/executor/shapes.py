"""Programs for batches of other shapes than the example's: captured and planned when such a batch first comes.

A program and what it was made of take about 10 KB of ordinary memory for each of its calls, so only the
`MOST_PROGRAMS` used last are kept; one that comes again later is made again, with what its codecs remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, final

from fedhybrid.codecs import BoundCodec, CodecState
from fedhybrid.executor.options import PlanOptions
from fedhybrid.executor.prepare import for_batch
from fedhybrid.executor.prepared import PreparedStep
from fedhybrid.executor.running import Runner
from fedhybrid.graph import BatchSpec, batch_tensors
from fedhybrid.planner import Plan

__all__ = ["MOST_PROGRAMS", "OtherShapes"]

# Programs kept beside the example's own: one for each shape and budget. Making one anew takes about a second.
MOST_PROGRAMS = 32

# Programs whose codecs' memory is kept (a few bytes a channel) after they are gone.
_MOST_REMEMBERED = 1024

Shapes = tuple[tuple[int, ...], ...]
Key = tuple[Any, int | None]


@dataclass(frozen=True)
class _Made:
    prepared: PreparedStep
    plan: Plan
    runner: Runner


@final
class OtherShapes:
    """The step for other batch shapes; model tensors, optimizer state and learning rates are the step's own."""

    def __init__(self, prepared: PreparedStep, planning: PlanOptions, *, most: int | None = None) -> None:
        self._main, self._planning = prepared, planning
        self._most = MOST_PROGRAMS if most is None else most
        self._known, self._captured = prepared.costs, 0
        self._made: OrderedDict[Key, _Made] = OrderedDict()  # used last at the end
        self._remembered: OrderedDict[Key, dict[tuple[int, str], CodecState]] = OrderedDict()
        self._codec_seed = 0

    def runner_for(self, batch: Any, budget_bytes: int | None) -> Runner | None:
        """The program of the batch's shape within the budget; None where the step's own fits.

        Raises:
            ConfigError: Not only the shape differs, but the structure or a type.
            CaptureError: The step does not trace with this shape.
            InfeasibleBudgetError: No plan of this shape fits.
        """
        _, spec = batch_tensors(batch)
        main = self._main.spec
        if spec == main:
            return None
        key = _key(spec), budget_bytes
        if key not in self._made:
            if (spec.structure, spec.dtypes) != (main.structure, main.dtypes):
                main.flatten(batch)  # raises, and says what differs
            made = self._make(batch, key)
            while len(self._made) >= self._most:
                self._forget_oldest()
            self._made[key] = made
        self._made.move_to_end(key)
        return self._made[key].runner

    def _make(self, batch: Any, key: Key) -> _Made:
        prepared = next((m.prepared for (shape, _), m in self._made.items() if shape == key[0]), None)
        if prepared is None:
            prepared = for_batch(self._main, batch, self._known)
            self._captured += 1
            # Costs of shapes that are gone are not carried along for ever.
            self._known = self._main.costs if self._captured % self._most == 0 else prepared.costs
        plan = prepared.keep_all() if key[1] is None else prepared.planned(key[1], self._planning)
        runner = prepared.compile(plan)
        remembered = self._remembered.pop(key, {})
        for codec in runner.codecs:
            codec.reset(self._codec_seed)
            codec.state = remembered.get(_tensor(codec), codec.state)
        # Its batch is not needed again and must not be kept alive.
        return _Made(replace(prepared, example=None), plan, runner)

    def _forget_oldest(self) -> None:
        key, made = self._made.popitem(last=False)
        states = {_tensor(c): c.state for c in made.runner.codecs if c.state.calls or c.state.facts}
        if states:
            self._remembered[key] = states
            if len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)

    def reset_codecs(self, seed: int) -> None:
        """What the codecs of all programs, gone ones and later ones too, remember begins anew."""
        self._codec_seed = seed
        self._remembered.clear()
        for runner in self.runners:
            for codec in runner.codecs:
                codec.reset(seed)

    @property
    def runners(self) -> list[Runner]:
        """Every program that is kept."""
        return [made.runner for made in self._made.values()]

    def plans(self, budget_bytes: int | None) -> dict[Shapes, Plan]:
        """Plans within this budget whose programs are kept, by the shapes of the batch's tensors."""
        return {key[0]: made.plan for (key, budget), made in self._made.items() if budget == budget_bytes}


def _key(spec: BatchSpec) -> Any:
    return spec.shapes, spec.strides


def _tensor(codec: BoundCodec) -> tuple[int, str]:
    return codec.number, codec.codec.name
