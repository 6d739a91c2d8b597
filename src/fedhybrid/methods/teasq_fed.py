"""TEASQ-Fed: TEA-Fed with sparsified and quantised traffic both ways, whose compression decays as training converges.

Source: J. Jia, J. Liu, C. Zhou, H. Tian, M. Dong, D. Dou, "Efficient Asynchronous Federated Learning with
Sparsification and Quantization", 2023, https://arxiv.org/abs/2312.15186
Follows: devices ask for tasks (policy `first-come`) up to a cap (`schedule.in_flight`); cached models are merged by
staleness (`schedule.buffer` at a time); regularised local objective; top-k and quantised traffic in both directions,
its strength first searched (`benchmarks/teasq.py`), then decaying.
Differs: only abstract and summaries are public to us. RECONSTRUCTED: the merge and its exponents (`teasq.merging`), all
constants, the ladder, the codec's details (`updates.top_k`, `updates.quantise`), and what is compressed. Up goes the
difference to the model that the client received; down goes the difference to the model that it last uploaded
(`teasq.returning`), or the whole model if it has not. `up = "raw"` and `down = "raw"` compress the weights themselves,
which may be nearer to the paper: what is not kept is zero on the other side. On the way down statistics of batch norm
travel as they are. For downloads as differences a client keeps the model of its last *merged* upload: two models, if it
is asked again while its update waits in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from fedhybrid.errors import ConfigError
from fedhybrid.methods.averaging import tasks_for_cohort
from fedhybrid.methods.teasq import (
    AbstractTea,
    Ladder,
    merged,
    packed_tasks,
    parse_ladder,
    parse_strength,
    remembered,
    task_of_difference,
)
from fedhybrid.protocols import RoundPlan, ServerState, Transport
from fedhybrid.records import ClientTask, Update
from fedhybrid.updates import parse_pipeline

__all__ = ["TeasqFed"]

_UP, _DOWN, _ROUNDINGS = ("difference", "raw"), ("difference", "raw", "whole"), ("nearest", "stochastic")
_DELTA, _FEEDBACK = {"name": "delta"}, {"name": "error-feedback"}


@final
@dataclass(frozen=True, kw_only=True)
class TeasqFed(AbstractTea):
    """TEA-Fed with compressed traffic; runs the unplanned step unless plans are switched on.

    Attributes:
        mixing: alpha: how far a merge of fresh models moves the global one, above 0 and at most 1.
        exponent: a: how fast models lose weight with age, at least 0.
        mu: Strength of the pull towards the model that the client received, at least 0.
        ladder: Strengths of compression from strong to none: ratio kept / bits of each, with spaces between them.
        start: The first strength, one of the ladder's.
        weaker_every: Merges until the next one; 0 stays with the first (static compression).
        up: What is compressed on the way up: the "difference" to the model that the client received, or "raw" weights.
        down: On the way down: the "difference" to what the client last uploaded, "raw" weights, or nothing: "whole".
        error_feedback: Whether what an upload lost is added to the client's next one.
        rounding: To the "nearest" level, or "stochastic".
    """

    ladder: str = "0.1/4 0.25/8 0.5/8 0.75/16 1/32"
    start: str = "0.25/8"
    weaker_every: int = 50
    up: str = "difference"
    down: str = "difference"
    error_feedback: bool = False
    rounding: str = "nearest"

    def _problems(self) -> list[str]:
        problems = super()._problems()
        try:
            rungs = parse_ladder(self.ladder)
            if parse_strength(self.start, where="start") not in rungs:
                known = ", ".join(map(str, rungs))
                problems.append(f"start must be one of the ladder's strengths, {known}, got {self.start!r}")
        except ConfigError as error:
            problems += error.problems
        if self.weaker_every < 0:
            problems.append(f"weaker_every must be at least 0 merges (0: never), got {self.weaker_every}")
        for name, choices in (("up", _UP), ("down", _DOWN), ("rounding", _ROUNDINGS)):
            if getattr(self, name) not in choices:
                problems.append(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.error_feedback and self.up == "raw":
            problems.append('error_feedback is for differences, and up is "raw"; change one of the two')
        return problems

    @cached_property
    def strengths(self) -> Ladder:
        """Which strength holds at which version."""
        rungs = parse_ladder(self.ladder)
        start = rungs.index(parse_strength(self.start, where="start"))
        return Ladder(rungs=rungs, start=start, weaker_every=self.weaker_every)

    def transport(self, version: int) -> Transport:
        """The strength of this version, of uploads; what goes down is packed by `assign`, which knows the client."""
        tables = self.strengths.at(version).tables(rounding=self.rounding)
        before = (_DELTA, _FEEDBACK) if self.error_feedback else (_DELTA,)
        return Transport(up=tables if self.up == "raw" else (*before, *tables))

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """The global model and the same work for everyone; packed, or as the difference to what a client has sent."""
        tasks = tasks_for_cohort(server, plan)
        if self.down == "whole":
            return tasks
        tables = self.strengths.at(server.version).tables(rounding=self.rounding)
        if self.down == "raw":
            return packed_tasks(tasks, server, parse_pipeline(tables, where="down"), run_seed=plan.run_seed)
        chain = parse_pipeline((_DELTA, *tables), where="down")
        return [task_of_difference(task, server.extra, server.buffers, chain) for task in tasks]

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """The global model after a merge of the cache."""
        weights = merged(server, updates, mixing=self.mixing, exponent=self.exponent)
        extra = remembered(server.extra, updates, server.buffers) if self.down == "difference" else server.extra
        return ServerState(weights=weights, extra=extra)
