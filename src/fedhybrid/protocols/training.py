"""What a method must offer, and what it is given: the server, a round, the client, the server's side of a talk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from fedhybrid.protocols.optimizing import Optimizer
from fedhybrid.protocols.submodels import Costs, Submodel
from fedhybrid.records import ClientTask, LocalWork, StreamTask, Update
from fedhybrid.tree import Tensors

__all__ = ["Attendant", "ClientRuntime", "Method", "RoundPlan", "ServerState", "Transport"]


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
        costs: Answers what clients hold, what their links take, what any submodel's step would cost them.
        submodels: For each client the first of the method's `menu` that fits, or the last of all; `plans` are theirs.
        phase: "train", "close", or the one of the method's `preparations` or `stages` that is due.
        stream: Which classes are on, where they come one task after the other.
    """

    round_index: int
    cohort: tuple[int, ...]
    plans: Mapping[int, str | None]
    work: LocalWork
    run_seed: int
    draw: int
    costs: Costs
    submodels: Mapping[int, str] = field(default_factory=dict)
    phase: str = "train"
    stream: StreamTask | None = None


@dataclass(frozen=True, kw_only=True)
class Transport:
    """What tensors go through on the links, each direction a chain of tables as in a recipe's `[traffic]`.

    Attributes:
        down: For models on their way to clients; without tables they travel as they are.
        up: For updates on their way to the server, likewise.
    """

    down: tuple[Mapping[str, Any], ...] = ()
    up: tuple[Mapping[str, Any], ...] = ()


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

    @property
    def labels(self) -> Tensor:
        """The label of each of its samples, by their positions, int64 (num_samples,)."""
        ...

    @property
    def tensors(self) -> Tensors:
        """The task's submodel itself, parameters and buffers: what is written into them is what the next step sees.

        Optimizers whose state copies parameters (`load` makes it anew) do not see it.
        """
        ...

    def load(self, weights: Tensors) -> None:
        """Sets the task's submodel to what `weights` has of its names, and the optimizer to its fresh state."""
        ...

    def draws(self, work: LocalWork, seed: int, *, among: Tensor | None = None) -> Iterator[Tensor]:
        """Shuffled positions (0 to `num_samples` - 1), exactly `work.batch_size` at a time, anew each epoch.

        Args:
            work: How many.
            seed: Decides the order.
            among: Draw from these positions alone; all of the client's samples where None.
        """
        ...

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The client's samples at these positions: inputs and labels."""
        ...

    def batches(self, work: LocalWork, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of exactly `work.batch_size` samples, anew each epoch."""
        ...

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One training step in place; returns the mean loss (scalar) and the loss of each sample (shape: batch)."""
        ...

    def weights(self) -> Tensors:
        """A copy of the task's submodel as it is now, parameters and buffers."""
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

    @property
    def compute_s(self) -> float:
        """Virtual seconds that its answers have taken so far, for which the client waits."""
        ...


class Method(Protocol):
    """One published system: five verbs (`init`, `assign`, `train`, `attend`, `aggregate`), submodels, a few facts."""

    @property
    def plans(self) -> bool:
        """Whether each client gets an execution plan for its budget; else only the unplanned step can run."""
        ...

    @property
    def codec(self) -> str | None:
        """The lossy codec that packs every eligible tensor of each client's step, where that is the method."""
        ...

    @property
    def fallback(self) -> str | None:
        """What those do who cannot hold the step as it is, where that is the method; all others run it as it is.

        A lossy codec, which packs every eligible tensor, or a solver, whose plan is then the same for every budget.
        """
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

    @property
    def stages(self) -> tuple[str, ...]:
        """Kinds of tasks that a round's cohort does one after the other, the last of which is "train".

        Each ends when all are back, and with an `aggregate` of those updates; who fails in one has no part in the next.
        """
        ...

    @property
    def closes(self) -> bool:
        """Whether those who came back from a round's training do a task of kind "close" before the model is tested.

        It ends, as a stage does, with an `aggregate`; in rounds after which nothing is tested there is none.
        """
        ...

    @property
    def acts_alone(self) -> bool:
        """Whether `aggregate` has something to do at the end of a round from which no update came."""
        ...

    def transport(self, version: int) -> Transport | None:
        """What goes over the links for tasks given out at this version of the server; None: what the recipe says.

        Both sides ask it, so it depends on the method's options and the version alone. A method that says something
        says it for every version, and its recipe has no `[traffic]`.
        """
        ...

    @property
    def is_personal(self) -> bool:
        """Whether clients answer with models of their own (`personal`), which are tested in the global one's place."""
        ...

    def tested_names(self, weights: Tensors) -> tuple[str, ...] | None:
        """Names in the global model that travel to a client that tests it on its own data; None: all of them.

        The others mean nothing at the server, or clients make them themselves (`personal`).
        """
        ...

    def personal(self, model: nn.Module, weights: Tensors, state: Tensors) -> Tensors:
        """What a client answers with: all tensors of the global model, some of them its own.

        Args:
            model: The adapted model, whose values mean nothing; not to be changed.
            weights: The global model.
            state: What the client has kept.
        """
        ...

    def adapt(self, model: nn.Module, sample: Tensor) -> nn.Module:
        """The global model, made from the recipe's: the same one, or with what the method needs.

        Args:
            model: With its initial weights; to be returned as it is, or made into another module.
            sample: Inputs of a batch of training data, as far as the model's sizes or ranges depend on them. Where the
                values come with the first task (on devices) they mean nothing, and only the form of the result counts.
        """
        ...

    def menu(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the submodels that a client may be offered, the preferred first; `("",)`, the whole model, for most.

        Who can hold none of them is no candidate. Names consist of letters, digits, '.', '_' and '-'.
        """
        ...

    def submodel(self, whole: Submodel, name: str) -> Submodel:
        """The submodel of that name.

        Args:
            whole: The run's own step: the adapted model, its loss, its optimizer. Its module must not be changed, and
                unless the result's module is that very one, they share no tensors.
            name: From `menu`, or of a `ClientTask` of this method; all that is needed to make it is in the name.
        """
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

    def attend(self, task: ClientTask, whole: Submodel) -> Attendant | None:
        """The server's side while the task is under way; None where clients ask nothing.

        Args:
            task: As the client received it; it is still the server's own.
            whole: As `submodel` is given it.
        """
        ...

    def aggregate(self, server: ServerState, updates: Sequence[Update]) -> ServerState:
        """The server after the round.

        Args:
            server: Before it.
            updates: In order of client number in synchronous rounds, else of arrival; not empty, but at the end of a
                synchronous round of a method that acts alone.
        """
        ...
