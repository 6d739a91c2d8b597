"""From a checked configuration to the parts of a run; what only the data can tell to be wrong is found here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from fedhybrid.data import Dataset, load_dataset
from fedhybrid.devices import DeviceProfile
from fedhybrid.engine import Federation, RunNames, Stream
from fedhybrid.engine.runtime import classification_loss
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.config import RunConfig
from fedhybrid.experiment.material import adapted, base_optimizer, dealt, initial_model, sample_of, traffic_of
from fedhybrid.experiment.parts import (
    evaluation_of,
    faults_of,
    fleet_of,
    planning_of,
    schedule_of,
    stream_of,
    work_of,
)
from fedhybrid.experiment.pretraining import Say, pretrain, pretraining_split
from fedhybrid.experiment.samples import federated_data
from fedhybrid.fleet import Fleet
from fedhybrid.methods import find_method
from fedhybrid.protocols import Submodel
from fedhybrid.registry import lookup
from fedhybrid.selection import POLICIES

__all__ = ["Datasets", "build_federation"]

T = TypeVar("T")
Datasets = dict[tuple[str, str | None], Dataset]


def build_federation(
    config: RunConfig,
    datasets: Datasets | None = None,
    *,
    folder: Path | None = None,
    say: Say = lambda text: None,
    values: bool = True,
) -> Federation:
    """Loads the data, deals them out, makes the fleet and the model; the same seed makes the same of each.

    Args:
        config: As `load_config` gives it.
        datasets: Data sets that are loaded already, by name and folder; a newly loaded one is added.
        folder: The run's, where its pre-trained weights may be (`pretraining.PRETRAINED`); nothing is written.
        say: Is told of stages that take long.
        values: Whether the model's values mean something; else it is not pre-trained.

    Raises:
        ConfigError: Data that are missing or damaged, more clients than samples, a model that does not take the
            data; all at once.
    """
    problems: list[str] = []
    datasets = {} if datasets is None else datasets
    whole = _or_problems(lambda: _loaded(config.dataset, config.data.root, datasets=datasets), problems)
    dataset = None if whole is None else _or_problems(lambda: federated_data(config, whole), problems)
    fleet = _or_problems(lambda: fleet_of(config), problems)
    shards, model, stream = None, None, None
    if dataset is not None:
        unsaid: list[str] = []
        shards = _or_problems(lambda: dealt(config, dataset), unsaid)
        problems += [each if each.startswith("data.") else f"data.partition: {each}" for each in unsaid]
        model = _or_problems(
            lambda: initial_model(
                config, input_shape=dataset.input_shape, classes=dataset.classes, tokens=dataset.tokens
            ),
            problems,
        )
        stream = _or_problems(lambda: stream_of(config, dataset.classes), problems)
        problems += [] if stream is None else _untested_problems(config, stream, dataset)
    if fleet is not None:
        problems += _device_problems(fleet)
    if problems:
        raise ConfigError(problems)
    assert dataset is not None
    assert fleet is not None
    assert shards is not None
    assert model is not None
    assert whole is not None
    pretrained, seen = None, dataset.train
    if values:
        load = partial(_loaded, datasets=datasets)
        pretrained = pretrain(config, model, whole, load, folder=folder, say=say)
        if config.pretrain is not None and config.pretrain.weights is None:
            seen, _ = pretraining_split(config, config.pretrain, whole, load)  # what a server may look at
    method = find_method(config.method)(**config.method_options)
    plain, model = model, adapted(method, model, sample_of(seen, config.seed))
    down, up = traffic_of(config, differences=method.differences)
    return Federation(
        names=RunNames(method=config.method, policy=config.policy, dataset=config.dataset, model=config.model),
        dataset=dataset,
        shards=shards,
        fleet=fleet,
        model=model,
        method=method,
        policy=lookup("policy", POLICIES, config.policy)(**config.policy_options),
        optimizer=method.optimizer(base_optimizer(config.train)),
        work=work_of(config),
        clients_per_round=config.fleet.clients_per_round,
        rounds=config.rounds,
        seed=config.seed,
        plans=method.plans if config.planner.enabled == "auto" else config.planner.enabled == "on",
        codec=None if config.planner.enabled == "off" else method.codec,
        fallback=None if config.planner.enabled == "off" else method.fallback,
        planning=planning_of(config.planner),
        schedule=schedule_of(config),
        faults=faults_of(config),
        evaluation=evaluation_of(config),
        down=down,
        up=up,
        natural=config.data.partition == "natural",
        workers=config.workers,
        checkpoint_every=config.checkpoint_every,
        plain=None
        if model is plain
        else Submodel(module=plain, loss_fn=classification_loss, optimizer=base_optimizer(config.train)),
        stream=stream,
        pretrained=pretrained,
    )


def _loaded(name: str, root: str | None, *, datasets: Datasets) -> Dataset:
    if (name, root) not in datasets:
        datasets[name, root] = load_dataset(name, None if root is None else Path(root))
    return datasets[name, root]


def _device_problems(fleet: Fleet) -> list[str]:
    """Profiles are told apart by their names, in plans and records; so two files must not share one."""
    first: dict[str, DeviceProfile] = {}
    clashes = {t.device.name for t in fleet.tiers if first.setdefault(t.device.name, t.device) != t.device}
    return [f"fleet.tiers: two different device profiles are called {name!r}; rename one" for name in sorted(clashes)]


def _untested_problems(config: RunConfig, stream: Stream, dataset: Dataset) -> list[str]:
    """Each task of a stream is tested, so there must be something to test it with."""
    tested = set(dataset.test.labels.tolist())
    remedy = "stream.tasks smaller" if config.evaluation.samples is None else "evaluation.samples larger"
    return [
        f"stream: the task of classes {', '.join(map(str, classes))} cannot be tested: none of the "
        f"{len(dataset.test):,} test samples is of them; make {remedy}"
        for classes in stream.tasks
        if tested.isdisjoint(classes)
    ]


def _or_problems(make: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return make()
    except ConfigError as error:
        problems += error.problems
        return None
