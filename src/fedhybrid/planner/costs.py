"""Seconds and workspace bytes of every call of a step, by signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fedhybrid.graph import Op, StepGraph
from fedhybrid.opwork import WAITING, OpWork
from fedhybrid.planner.calls import Update, signature, update_signature
from fedhybrid.protocols import Optimizer

__all__ = ["CallCost", "CostTable", "SplitCost"]


@dataclass(frozen=True)
class CallCost:
    """What one call costs.

    Attributes:
        seconds: Of one call.
        workspace_bytes: The allocator's peak inside the call beyond what it leaves behind.
        hidden_bytes: What it leaves behind beyond its outputs' bytes (a mean may keep the memory of its summands).
    """

    seconds: float
    workspace_bytes: int
    hidden_bytes: int = 0


@dataclass(frozen=True)
class SplitCost:
    """What a call costs when it runs in `chunks` parts; `exact` if its results are the whole call's bits."""

    chunks: int
    seconds: float
    workspace_bytes: int
    exact: bool


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs by signature.

    Attributes:
        calls: Of whole calls.
        works: How much arithmetic each signature is, so that other devices can price it.
        splits: Of the largest calls when they run in chunks.
        exact_affine: On this machine batch norm may be replayed from its saved statistics (see `planner.calls`).
    """

    calls: dict[str, CallCost]
    works: dict[str, OpWork]
    splits: dict[str, tuple[SplitCost, ...]]
    exact_affine: bool

    def of_op(self, graph: StepGraph, op: Op) -> CallCost:
        """Cost of an operator or of a replay form."""
        return self.calls[signature(graph, op)]

    def splits_of(self, graph: StepGraph, op: Op) -> tuple[SplitCost, ...]:
        """Costs of the chunked forms of an operator."""
        return self.splits.get(signature(graph, op), ())

    def of_update(self, graph: StepGraph, update: Update, optimizer: Optimizer) -> CallCost:
        """Cost of one parameter's update."""
        return self.calls[update_signature(graph, update, optimizer)]

    def with_hidden_bytes(self, graph: StepGraph) -> StepGraph:
        """The graph with storages as large as the operators really leave them."""
        storages = list(graph.storages)
        for op in graph.ops:
            outputs = [v for v in op.outputs if v is not None]
            if not op.is_view and not op.writes and outputs and (hidden := self.of_op(graph, op).hidden_bytes):
                storage = storages[graph.storage_of(outputs[0])]
                storages[storage.index] = replace(storage, nbytes=storage.nbytes + hidden)
        return replace(graph, storages=storages)

    def priced(self, op_seconds: Callable[[OpWork], float]) -> CostTable:
        """The same calls on another device: its seconds, the workspace measured here; waiting costs none."""
        calls = {
            key: replace(cost, seconds=0.0 if self.works[key].kind == WAITING else op_seconds(self.works[key]))
            for key, cost in self.calls.items()
        }
        splits = {
            key: tuple(
                replace(cost, seconds=_chunked_seconds(self.works[key], cost.chunks, op_seconds)) for cost in costs
            )
            for key, costs in self.splits.items()
        }
        return replace(self, calls=calls, splits=splits)

    @property
    def kernel_s(self) -> float:
        """Sum over the distinct calls of their seconds (FedHybrid's compute statistic is its inverse)."""
        return sum(cost.seconds for cost in self.calls.values())


def _chunked_seconds(work: OpWork, chunks: int, op_seconds: Callable[[OpWork], float]) -> float:
    return chunks * op_seconds(OpWork(work.kind, work.flops / chunks, work.moved_bytes // chunks))


def work_of_update(graph: StepGraph, update: Update, optimizer: Optimizer) -> OpWork:
    """An update reads and writes the parameter and each state tensor, and reads the gradient."""
    param = graph.values[update.param]
    tensors = 1 + len(optimizer.state_names)
    return OpWork("optimizer", 2.0 * tensors * param.numel, (2 * tensors + 1) * param.nbytes)
