"""The seams between the floors: what an optimizer, a policy, a method, a driver must offer.

Each is small enough to be said in one sentence, holds no hidden state, and is written down here, below everything that
uses it, so that two floors can share it without importing each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from fedhybrid.records import ClientTask, FloatArray, IntArray, LocalWork, Outcome, TaskEvent, Update
from fedhybrid.tree import Tensors

__all__ = [
    "Attendant",
    "CandidateView",
    "ClientRuntime",
    "Driver",
    "Method",
    "Optimizer",
    "Policy",
    "PolicyState",
    "RoundPlan",
    "ServerState",
]

PolicyState = dict[str, Any]  # JSON only, so that a run can be resumed


@runtime_checkable
class Optimizer(Protocol):
    """The rule that turns one gradient into one in-place parameter update.

    The engine calls `update` inside the step, right after the gradient is ready and the parameter has been read for
    the last time. All state is in the tensors of `init_state` and the count of steps, both of which the engine keeps.
    """

    @property
    def lr(self) -> float:
        """Learning rate to start with; `TrainStep.set_lr` changes it without a new capture."""
        ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state tensors, each of the parameter's shape and dtype."""
        ...

    @property
    def eager_scratch_tensors(self) -> int:
        """Parameter-sized temporaries that torch.optim's for-loop implementation of this rule holds at once."""
        ...

    @property
    def eager_left_tensors(self) -> int:
        """How many of those are still held while those of the next parameter are made."""
        ...

    def rule_for(self, name: str, shape: tuple[int, ...]) -> Optimizer:
        """The rule of one parameter: with the options of its group, or this very optimizer where there are none.

        Args:
            name: The parameter's name in its model.
            shape: Of the parameter.
        """
        ...

    def init_state(self, param: Tensor) -> dict[str, Tensor]:
        """Fresh state of one parameter."""
        ...

    def update(
        self, name: str, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], *, step: int, lr: float, owned: bool
    ) -> None:
        """Updates `param` and `state` in place.

        Args:
            name: The parameter's name in its model (parameter groups go by name).
            param: Any shape.
            grad: Same shape as `param`.
            state: What `init_state` gave, as later calls left it.
            step: 1 at the first call for this parameter.
            lr: The current learning rate of this parameter (of its group).
            owned: True when nothing else reads the gradient's memory, so that it may be overwritten.
        """
        ...


class CandidateView(Protocol):
    """The clients that may be selected now; `records.Candidates` says what each column means.

    A column is made when it is first asked for: a policy that asks for none costs the same for ten clients and for a
    million.
    """

    def __len__(self) -> int:
        """An upper bound of how many there are: of a large fleet nobody counts who is away."""
        ...

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """At most `count` of the clients without replacement, all alike, in ascending order."""
        ...

    @property
    def client(self) -> IntArray:
        """Client numbers, ascending; all other columns are in this order."""
        ...

    @property
    def tier(self) -> IntArray:
        """Index of each client's tier."""
        ...

    @property
    def budget_bytes(self) -> IntArray:
        """What each client promises for the coming round."""
        ...

    @property
    def num_samples(self) -> IntArray:
        """Training samples that each client holds."""
        ...

    @property
    def unplanned_bytes(self) -> int:
        """Peak of the step without any plan."""
        ...

    @property
    def smallest_bytes(self) -> int:
        """Smallest peak that the step can be run in."""
        ...

    @property
    def step_s(self) -> FloatArray:
        """Predicted seconds of one step as each client would run it; infinity where it cannot."""
        ...

    @property
    def kernel_s(self) -> FloatArray:
        """Sum over the model's distinct operators of their seconds on each client's device."""
        ...

    @property
    def round_s(self) -> FloatArray:
        """Predicted seconds of each client's whole task; infinity where it cannot."""
        ...


class Policy(Protocol):
    """Chooses each round's cohort among the candidates; its state goes in and comes out."""

    def init(self) -> PolicyState:
        """The state before the first round."""
        ...

    def select(
        self, candidates: CandidateView, count: int, state: PolicyState, *, round_index: int, seed: int
    ) -> tuple[IntArray, PolicyState]:
        """At most `count` distinct client numbers (fewer when fewer are fit), and the new state."""
        ...

    def observe(self, outcomes: Sequence[Outcome], state: PolicyState) -> PolicyState:
        """The state after the round's outcomes are known."""
        ...


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """What the server knows between rounds.

    Attributes:
        weights: The global model.
        extra: Named tensors of the method's own.
        version: How many times it has aggregated; the engine counts. An update's staleness is this less its
            `round_index`.
        buffers: Names in `weights` that no gradient changes, such as the statistics of batch norm; the engine fills
            them in.
    """

    weights: Tensors
    extra: Tensors = field(default_factory=dict)
    version: int = 0
    buffers: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What a method's `assign` is given.

    Attributes:
        round_index: The server's version.
        cohort: Who takes part.
        plans: The name of each client's plan, or None for the unplanned step.
        work: How much local work.
        run_seed: The run's.
        draw: What the tasks' seeds derive from beside client and run: equal to `round_index` in rounds; in
            asynchronous runs, where a client may be asked twice in one version, the number of the request.
        phase: "train", or the one of the method's `preparations` that is due.
    """

    round_index: int
    cohort: tuple[int, ...]
    plans: Mapping[int, str | None]
    work: LocalWork
    run_seed: int
    draw: int
    phase: str = "train"


class ClientRuntime(Protocol):
    """The client's side of a task: its data and one compiled training step that stays inside its budget."""

    @property
    def num_samples(self) -> int:
        """Training samples on this client."""
        ...

    @property
    def buffers(self) -> frozenset[str]:
        """Names of the model's tensors that no gradient changes."""
        ...

    @property
    def state(self) -> Tensors:
        """What the client has kept since its last task; an update's `state` replaces it. Empty at first."""
        ...

    def load(self, weights: Tensors) -> None:
        """Sets the model to `weights` and the optimizer to its fresh state."""
        ...

    def batches(self, work: LocalWork, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of exactly `work.batch_size` samples, anew each epoch."""
        ...

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One training step in place; returns the mean loss (scalar) and the loss of each sample (shape: batch)."""
        ...

    def weights(self) -> Tensors:
        """A copy of the model as it is now."""
        ...

    @property
    def measured_peak_bytes(self) -> int:
        """Peak of one real step of this program by the allocator's events, resident bytes included."""
        ...

    def exchange(self, question: Tensors) -> Tensors:
        """Sends tensors to the server in the middle of the task and waits for its answer (`Method.attend`).

        All bytes of both are counted on the client's link. The tensors may be on their way in another process or on
        another machine: neither side may change them afterwards and hope that the other sees it.
        """
        ...


class Attendant(Protocol):
    """The server's side of one task whose client asks in the middle of it, as in split learning.

    It follows from the task and the questions alone: it sees no other task's, so that neither order nor place of work
    change anything. What it draws comes from a generator of its own, seeded from the task's.
    """

    def answer(self, question: Tensors) -> Tensors:
        """The answer to the client's next question."""
        ...

    def result(self) -> Tensors:
        """What has been trained at the server, by the model's names; it joins the client's update, and is not sent."""
        ...


class Method(Protocol):
    """One published system: five verbs (`init`, `assign`, `train`, `attend`, `aggregate`) and a few facts."""

    @property
    def plans(self) -> bool:
        """Whether each client gets an execution plan for its budget; else only the unplanned step can run."""
        ...

    @property
    def codec(self) -> str | None:
        """The lossy codec that packs every eligible tensor of each client's step, where that is the method."""
        ...

    @property
    def asynchronous(self) -> bool:
        """Whether `aggregate` knows what to do with few updates of different staleness."""
        ...

    @property
    def differences(self) -> bool:
        """Whether an update's parameters are differences to the model that the client received, else the model's own.

        Buffers are always sent as they are: differences of statistics, added up, may leave no statistics.
        """
        ...

    @property
    def preparations(self) -> tuple[str, ...]:
        """Kinds of tasks done once, before the first round, by all clients online then; `aggregate` ends each."""
        ...

    def optimizer(self, base: Optimizer) -> Optimizer:
        """The clients' optimizer, made from the configured one."""
        ...

    def init(self, weights: Tensors) -> ServerState:
        """The server before the first round."""
        ...

    def assign(self, server: ServerState, plan: RoundPlan) -> list[ClientTask]:
        """One task for each client of the cohort."""
        ...

    def train(self, task: ClientTask, client: ClientRuntime) -> Update:
        """The client's side: a function of the task, the client's data and the server's answers alone."""
        ...

    def attend(self, task: ClientTask) -> Attendant | None:
        """The server's side while the task is under way; None where clients ask nothing."""
        ...

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """The server after the round.

        Args:
            server: Before it.
            updates: Not empty; in order of client number in synchronous rounds, else of arrival.
        """
        ...


class Driver(Protocol):
    """Runs tasks on clients, on a virtual or a real clock.

    Synchronous round: submit k, take events until k are back. Asynchronous: take one event, submit one task.
    """

    def clients(self) -> IntArray:
        """Numbers of the clients that can be given a task now, ascending."""
        ...

    def submit(self, client: int, task: ClientTask) -> int:
        """Sends a task; returns its ticket."""
        ...

    def cancel(self, ticket: int) -> TaskEvent:
        """Gives up a task that has not ended: the event of its failure "late", with what it has cost so far."""
        ...

    def next_event(self, timeout_s: float | None = None) -> TaskEvent | None:
        """The next task to end, in the clock's order (ties by ticket); None when none ends within `timeout_s`."""
        ...

    def now(self) -> float:
        """The clock, in seconds since the run began."""
        ...
