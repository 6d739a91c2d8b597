"""From tables of a checked recipe to the small parts of a run that need no data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhybrid.engine import Evaluation, Faults, Schedule, Stream, read_incidents
from fedhybrid.errors import ConfigError
from fedhybrid.executor import PlanOptions
from fedhybrid.experiment.config import PlannerTable, RunConfig
from fedhybrid.fleet import AvailabilitySpec, DelaySpec, Fleet, MemorySpec, TierSpec, TraceSpec, check_fleet, make_fleet
from fedhybrid.methods import METHODS, find_method
from fedhybrid.records import LocalWork

__all__ = [
    "check_devices",
    "evaluation_of",
    "faults_of",
    "fleet_of",
    "input_files",
    "planning_of",
    "schedule_of",
    "stream_of",
    "work_of",
]


def planning_of(planner: PlannerTable) -> PlanOptions:
    """How plans are made.

    Raises:
        ConfigError: An option that is none.
    """
    return PlanOptions(
        actions=tuple(planner.actions),
        solver=planner.solver,
        codecs=tuple(planner.codecs),
        max_gradient_error=planner.max_gradient_error,
    )


def work_of(config: RunConfig) -> LocalWork:
    """How much a client trains."""
    train = config.train
    return LocalWork(
        epochs=train.epochs or 1,  # not looked at where there are steps or samples
        batch_size=train.batch_size,
        lr=train.lr,
        last_batch=train.last_batch,
        steps=train.steps,
        samples=train.samples,
    )


def schedule_of(config: RunConfig) -> Schedule:
    """When the server waits for whom.

    Raises:
        ConfigError: Options outside their range or that do not go together, or a method that cannot aggregate so.
    """
    table, clients = config.schedule, config.data.clients
    in_flight = config.fleet.clients_per_round if table.in_flight is None else table.in_flight
    schedule = Schedule(**table.model_dump(exclude={"in_flight"}), in_flight=in_flight)
    problems = []
    if not schedule.asynchronous and table.in_flight is not None:
        problems.append(
            "schedule.in_flight is for the asynchronous schedule; in synchronous rounds fleet.clients_per_round says "
            "how many train"
        )
    if schedule.asynchronous:
        counts = (("in_flight", table.in_flight), ("buffer", table.buffer))
        problems += [
            f"schedule.{name} must be at most data.clients, which is {clients}, got {count}"
            for name, count in counts
            if count is not None and count > clients
        ]
    if schedule.asynchronous and not find_method(config.method)(**config.method_options).asynchronous:
        known = ", ".join(sorted(name for name, row in METHODS.items() if _is_asynchronous(row)))
        problems.append(
            f"schedule.kind is 'asynchronous', but method {config.method!r} does not know how to combine updates of "
            f'different staleness; use one of {known} (planner.enabled = "on" gives them plans)'
        )
    if schedule.asynchronous and config.evaluation.clients:
        problems.append("evaluation.clients is for synchronous rounds; an asynchronous run is tested on the test set")
    if problems:
        raise ConfigError(problems)
    return schedule


def _is_asynchronous(row: type) -> bool:
    return bool(row().asynchronous)


def faults_of(config: RunConfig) -> Faults:
    """What goes wrong on purpose.

    Raises:
        ConfigError: Probabilities that are none, a trace that cannot be read, or one of clients that there are not.
    """
    table, clients = config.failures, config.data.clients
    incidents = () if table.trace is None else read_incidents(Path(table.trace))
    strangers = sorted({incident.client for incident in incidents if incident.client >= clients})
    if strangers:
        named = ", ".join(str(client) for client in strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise ConfigError(
            f"failures.trace: {table.trace} names clients that there are not: {named}; data.clients is {clients}, so "
            f"they are 0 to {clients - 1}"
        )
    return Faults(**table.model_dump(exclude={"trace"}), incidents=incidents)


def input_files(config: RunConfig) -> dict[str, Path]:
    """Files that the recipe names and the run depends on, by their settings; device profiles and data are not here."""
    named = {
        "failures.trace": config.failures.trace,
        "fleet.memory.file": (config.fleet.memory or {}).get("file"),
        "fleet.availability.file": (config.fleet.availability or {}).get("file"),
        "pretrain.weights": None if config.pretrain is None else config.pretrain.weights,
    }
    return {setting: Path(file) for setting, file in named.items() if file is not None}


def evaluation_of(config: RunConfig) -> Evaluation:
    """How often the model is tested, and by whom."""
    return Evaluation(every=config.evaluation.every, clients=config.evaluation.clients)


def stream_of(config: RunConfig, classes: int) -> Stream | None:
    """Which of the data set's classes are on when; None where all always are.

    Raises:
        ConfigError: More tasks than classes, or too few rounds for all tasks.
    """
    table = config.stream
    if table is None:
        return None
    needed = (table.tasks - 1) * table.rounds_each + 1
    if config.rounds < needed:
        raise ConfigError(
            f"stream: {table.tasks} tasks of {table.rounds_each} rounds need rounds to be at least {needed}, got "
            f"{config.rounds}; the last tasks would never come"
        )
    seed = config.seed if table.seed is None else table.seed
    return Stream.drawn(classes=classes, tasks=table.tasks, rounds_each=table.rounds_each, seed=seed)


def check_devices(config: RunConfig) -> None:
    """As `fleet_of`, but nothing is made.

    Raises:
        ConfigError: As `fleet_of`.
    """
    tiers, memory, availability, delays = _fleet_specs(config)
    check_fleet(tiers, config.data.clients, memory=memory, availability=availability, delays=delays)


def fleet_of(config: RunConfig) -> Fleet:
    """The devices.

    Raises:
        ConfigError: Everything that is wrong with tiers, memory, availability and delays.
    """
    tiers, memory, availability, delays = _fleet_specs(config)
    return make_fleet(tiers, config.data.clients, config.seed, memory=memory, availability=availability, delays=delays)


def _fleet_specs(
    config: RunConfig,
) -> tuple[list[TierSpec], MemorySpec | None, AvailabilitySpec | None, DelaySpec | None]:
    fleet = config.fleet
    return (
        [TierSpec(**tier.model_dump()) for tier in fleet.tiers],
        None if fleet.memory is None else _memory_spec(fleet.memory),
        None if fleet.availability is None else AvailabilitySpec(**fleet.availability),
        None if fleet.delays is None else DelaySpec(**fleet.delays),
    )


def _memory_spec(table: Mapping[str, Any]) -> MemorySpec:
    trace = table.get("trace")
    return MemorySpec(**{**table, "trace": None if trace is None else TraceSpec(**trace)})
