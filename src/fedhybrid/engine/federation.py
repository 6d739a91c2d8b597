"""What one run is made of, after the configuration has been read: everything built, nothing started."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from fedhybrid.data import Dataset, Shards
from fedhybrid.engine.faults import Faults
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.engine.schedule import Evaluation, Schedule
from fedhybrid.engine.stream import Stream
from fedhybrid.executor import PlanOptions
from fedhybrid.fleet import Fleet
from fedhybrid.protocols import Attendant, Method, Optimizer, Policy, Submodel
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.updates import Pipeline

__all__ = ["Federation", "RunNames"]


@dataclass(frozen=True, kw_only=True)
class RunNames:
    """What the parts are called in the recipe; only for records and messages."""

    method: str
    policy: str
    dataset: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The parts of a run.

    Attributes:
        names: The parts' names in the recipe.
        dataset: Images and labels; the test split measures accuracy.
        shards: For each client the indices of its training samples.
        fleet: Tier, budget and device of each client.
        model: The global model with its initial weights, as the method has adapted it.
        method: The published system.
        policy: Chooses the cohorts.
        optimizer: The clients' optimizer, as the method made it.
        plain: The step of the recipe's own model, which per cent budgets refer to, where the method trains another.
        stream: Which classes are on when; None: all, always.
        pretrained: What training at the server gave, as a file in the run's folder; None where nothing did.
        work: How much a client trains in a round.
        clients_per_round: Largest cohort.
        rounds: Rounds in all.
        seed: All randomness derives from it.
        plans: Whether clients get plans for their budgets.
        codec: What packs every eligible tensor of every client's step instead, or None.
        fallback: The one plan of those who cannot hold the step as it is, a codec's or a solver's, or None.
        planning: How plans are made.
        schedule: When the server waits for whom.
        faults: What goes wrong on purpose.
        evaluation: How often the model is tested, and by whom.
        down: What models go through on their way to clients.
        up: What updates go through on their way to the server.
        natural: Whether clients are people of the data set, with test samples of their own.
        workers: Processes that train; the results do not depend on it.
        checkpoint_every: Rounds from one checkpoint to the next, or None: one after each second of work; nor on this.
    """

    names: RunNames
    dataset: Dataset
    shards: Shards
    fleet: Fleet
    model: nn.Module
    method: Method
    policy: Policy
    optimizer: Optimizer
    work: LocalWork
    clients_per_round: int
    rounds: int
    seed: int
    plans: bool
    codec: str | None
    planning: PlanOptions
    schedule: Schedule = field(default_factory=Schedule)
    faults: Faults = field(default_factory=Faults)
    evaluation: Evaluation = field(default_factory=Evaluation)
    down: Pipeline = field(default_factory=lambda: Pipeline(parts=()))
    up: Pipeline = field(default_factory=lambda: Pipeline(parts=()))
    natural: bool = False
    workers: int = 1
    checkpoint_every: int | None = None
    plain: Submodel | None = None
    stream: Stream | None = None
    fallback: str | None = None
    pretrained: bytes | None = None

    @property
    def whole(self) -> Submodel:
        """The step of the whole global model."""
        return Submodel(module=self.model, loss_fn=classification_loss, optimizer=self.optimizer)

    def attend(self, task: ClientTask) -> Attendant | None:
        """The server's side of a task, where it has one."""
        return None if task.kind == "evaluate" else self.method.attend(task, self.whole)
