"""A run's configuration: what a recipe (TOML) may say, with every default in one place.

Only shapes and ranges are checked here; whether names exist and parts fit together is `experiment.check`'s and
`experiment.build`'s business.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fedhybrid.planner import MENU

__all__ = ["PlannerTable", "PretrainTable", "RunConfig", "TierTable", "TrainTable"]

_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Ratio = Annotated[float, Field(gt=0, lt=1)]
_Options = dict[str, Any]
_AMOUNTS = ("epochs", "steps", "samples")


def _different(numbers: list[int]) -> list[int]:
    if len(set(numbers)) < len(numbers):
        raise ValueError("no class may stand there twice")
    return numbers


def _two(names: list[str]) -> list[str]:
    if len(names) != 2 or len(set(names)) != 2:
        raise ValueError(f"must be two variants, got {names}")
    return names


_Pair = Annotated[list[str], AfterValidator(_two)]
_Distinct = Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(_different)]
_Classes = Annotated[_Distinct, Field(min_length=2)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataTable(_Table):
    """Where the samples come from and who holds them. `root` is the folder of a data set that is not embedded.

    `classes` leaves out the samples of all other classes; the first of them becomes class 0, and so on. Only devices of
    the tiers `alone_tiers` hold samples of `alone_classes` (as the classes are numbered then); what else there is, all.
    """

    root: str | None = None
    classes: _Classes | None = None
    partition: str = "dirichlet"
    clients: _Count = 30
    alpha: _Positive = 0.3
    shards_per_client: _Count = 2
    samples_per_client: _Count = 64
    alone_tiers: list[str] | None = None
    alone_classes: _Distinct | None = None


class TierTable(_Table):
    """One kind of device in the fleet; `share` is relative to the other tiers' shares."""

    name: str = Field(min_length=1)
    budget: str | int | dict[str, Any]
    device: str
    share: _Positive = 1.0
    speed_spread: _NotNegative = 0.0


class FleetTable(_Table):
    """The devices. Without tiers every device is a laptop that holds the unplanned step.

    `memory` says that other apps come and go (`fleet.MemorySpec`), `availability` that devices do
    (`fleet.AvailabilitySpec`), `delays` that chance makes tasks longer (`fleet.DelaySpec`); without them budgets stand
    still, everybody is always online, and tasks take what their devices' profiles say. `budget` takes the place of each
    tier's own, whatever tiers there are.
    """

    clients_per_round: _Count = 10
    tiers: list[TierTable] = Field(
        default_factory=lambda: [TierTable(name="all", budget="100%", device="laptop")], min_length=1
    )
    budget: str | int | dict[str, Any] | None = None
    memory: _Options | None = None
    availability: _Options | None = None
    delays: _Options | None = None


class TrainTable(_Table):
    """The clients' work in a round: `epochs` (one, if nothing is said), or so many `steps` or `samples`.

    `momentum` and `nesterov` are for SGD.
    """

    batch_size: _Count = 16
    epochs: _Count | None = None
    steps: _Count | None = None
    samples: _Count | None = None
    lr: _Positive = 0.05
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: _NotNegative = 0.0
    nesterov: bool = False
    last_batch: Literal["wrap", "drop"] = "wrap"

    @model_validator(mode="before")
    @classmethod
    def _one_epoch_unless_it_says_otherwise(cls, table: Any) -> Any:
        if isinstance(table, dict) and not any(table.get(name) is not None for name in _AMOUNTS):
            return {**table, "epochs": 1}
        return table

    @model_validator(mode="after")
    def _options_of_the_optimizer(self) -> TrainTable:
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov are options of sgd, the optimizer is {self.optimizer}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        given = [name for name in _AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            *names, last = given
            count = "two" if len(given) == 2 else "three"
            raise ValueError(
                f"{', '.join(names)} and {last} are {count} ways to say how much is trained; give one of them"
            )
        return self


class PretrainTable(_Table):
    """Where the model that the federation begins with comes from: a file of `weights`, or training at the server.

    It trains on `dataset` (in the folder `root`), on the run's own where none is named: on its `classes`, on a `share`
    of them, which no client gets, on at most so many `samples`. `new_head` draws the last layer anew, near zero. How
    long: `epochs` (five, if nothing is said) or `steps`.
    """

    weights: Annotated[str, Field(min_length=1)] | None = None
    new_head: bool = False
    dataset: str | None = None
    root: str | None = None
    classes: _Classes | None = None
    share: _Ratio | None = None
    samples: _Count | None = None
    epochs: _Count | None = None
    steps: _Count | None = None
    batch_size: _Count | None = None
    lr: _Positive | None = None
    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: _NotNegative | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_training(cls, table: Any) -> Any:
        if not isinstance(table, dict) or table.get("weights") is not None:
            return table
        how_long = {} if any(table.get(name) is not None for name in ("epochs", "steps")) else {"epochs": 5}
        return _PRETRAINING | how_long | {name: value for name, value in table.items() if value is not None}

    @model_validator(mode="after")
    def _one_source(self) -> PretrainTable:
        if self.weights is not None:
            beside = sorted(self.model_fields_set - {"weights", "new_head"})
            if any(getattr(self, name) is not None for name in beside):
                raise ValueError(f"{', '.join(beside)} say how to train, and weights names a file; give one of the two")
            return self
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are two ways to say how much is trained; give one of them")
        if self.optimizer != "sgd" and self.momentum:
            raise ValueError(f"momentum is an option of sgd, the optimizer is {self.optimizer}")
        return self


_PRETRAINING = {"batch_size": 32, "lr": 0.05, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}


class PlannerTable(_Table):
    """How plans are made. `enabled`: "auto" leaves it to the method, "on" and "off" decide for it.

    `codecs` and `max_gradient_error` are for the action "encode"; without a cap (`inf`) errors are not measured.
    Where `solver` finds no plan within a device's budget, one by "auto" stands in, or the smallest; both without loss.
    """

    enabled: Literal["auto", "on", "off"] = "auto"
    solver: str = "auto"
    actions: list[str] = Field(default_factory=lambda: ["recompute"])
    codecs: list[str] = Field(default_factory=lambda: list(MENU))
    max_gradient_error: Annotated[float, Field(ge=0)] = 0.0


class ScheduleTable(_Table):
    """When the server waits for whom; `engine.Schedule` says what each means, and checks the ranges."""

    kind: str = "synchronous"
    in_flight: int | None = None
    buffer: int = 1
    max_staleness: int | None = None
    over_selection_ratio: float = 1.0
    deadline_s: float | None = None
    timeout_s: float | None = None


class FailuresTable(_Table):
    """Probabilities that a task ends in each kind of failure; `trace` is a file of failures by client and time."""

    crash: float = 0.0
    time_out: float = 0.0
    disconnected: float = 0.0
    out_of_memory: float = 0.0
    corrupt: float = 0.0
    non_finite: float = 0.0
    trace: str | None = None


class TrafficTable(_Table):
    """What models (`down`) and updates (`up`) go through on the links: transforms by name, each with its options."""

    up: list[_Options] = Field(default_factory=list)
    down: list[_Options] = Field(default_factory=list)


class EvaluationTable(_Table):
    """Every how many rounds the model is tested, and how many clients test it on their own data then.

    With `samples`, so many of the test set are asked, drawn once by the seed; else all.
    """

    every: _Count = 1
    samples: _Count | None = None
    clients: Annotated[int, Field(ge=0)] = 0


class StreamTable(_Table):
    """Classes that come one task after the other, each for so many rounds; `seed` draws their order (the run's own)."""

    tasks: Annotated[int, Field(ge=2)] = 5
    rounds_each: _Count = 5
    seed: int | None = None


class CompareTable(_Table):
    """Variants of one recipe that run side by side: label -> settings that replace the recipe's.

    The rest is for `fedhybrid compare`: `grid` says in which settings cells differ (`experiment.cells`), `targets` the
    accuracies whose times are told, `reference` the variant with which the others are compared, `oracle` one
    without limits, which gets no place among the others, and `apart` further variants that get none; `effects` names
    pairs of variants that differ in one thing, by what that is: the one that has it, then the one that has not.
    """

    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    grid: _Options | None = None
    targets: list[_Ratio] | None = None
    reference: str | None = None
    oracle: str | None = None
    apart: list[str] | None = None
    effects: dict[str, _Pair] | None = None

    @model_validator(mode="after")
    def _names_are_variants(self) -> CompareTable:
        named = [("apart", name) for name in self.apart or ()]
        named += [(f"effects.{label}", name) for label, pair in (self.effects or {}).items() for name in pair]
        for where, name in (("reference", self.reference), ("oracle", self.oracle), *named):
            if name is not None and name not in self.variants:
                raise ValueError(f"{where} must name one of the variants ({', '.join(self.variants)}), got {name!r}")
        if self.oracle is not None and self.oracle == self.reference:
            raise ValueError(
                f"oracle and reference must be two variants, both are {self.oracle!r}; name another reference"
            )
        return self


class RunConfig(_Table):
    """Everything that decides a run."""

    method: str = "fedhybrid"
    policy: str = "fedhybrid"
    model: str
    dataset: str
    rounds: _Count = 20
    seed: int = 0
    data: DataTable = Field(default_factory=DataTable)
    model_options: _Options = Field(default_factory=dict)
    method_options: _Options = Field(default_factory=dict)
    policy_options: _Options = Field(default_factory=dict)
    fleet: FleetTable = Field(default_factory=FleetTable)
    train: TrainTable = Field(default_factory=TrainTable)
    pretrain: PretrainTable | None = None
    planner: PlannerTable = Field(default_factory=PlannerTable)
    schedule: ScheduleTable = Field(default_factory=ScheduleTable)
    failures: FailuresTable = Field(default_factory=FailuresTable)
    traffic: TrafficTable = Field(default_factory=TrafficTable)
    evaluation: EvaluationTable = Field(default_factory=EvaluationTable)
    stream: StreamTable | None = None
    workers: _Count = 1
    checkpoint_every: _Count | None = None
    compare: CompareTable = Field(default_factory=CompareTable)
