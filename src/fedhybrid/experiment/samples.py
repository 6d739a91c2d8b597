"""Which samples of a data set the federation has, and which the server keeps back to pre-train the model on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedhybrid.data import Dataset, find_loader
from fedhybrid.data.chosen import check_classes, of_classes, rows_of_classes, tested_by, without
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.config import PretrainTable, RunConfig
from fedhybrid.records import IntArray
from fedhybrid.seeds import derive_seed

__all__ = ["federated_data", "is_own", "pretrain_problems", "pretraining_rows"]


def is_own(config: RunConfig, table: PretrainTable) -> bool:
    """Whether pre-training reads the data set of the run itself."""
    if table.dataset is None or table.root is None:
        return table.dataset in (None, config.dataset)
    same_folder = config.data.root is not None and Path(table.root).resolve() == Path(config.data.root).resolve()
    return table.dataset == config.dataset and same_folder


def pretrain_problems(config: RunConfig) -> list[str]:
    """What in [pretrain] does not go together with the rest of the recipe, as far as that shows without data."""
    table = config.pretrain
    if table is None or table.weights is not None:
        return []
    problems = []
    own = is_own(config, table)
    if table.dataset is not None:
        try:
            find_loader(table.dataset)
        except ConfigError as error:
            problems += [f"pretrain.dataset: {problem}" for problem in error.problems]
    if not own and table.share is not None:
        problems.append(
            "pretrain.share is what clients of the run's own data go without; from another data set, take so many "
            "pretrain.samples"
        )
    if own and table.root is not None and table.dataset is None:
        problems.append("pretrain.root is the folder of pretrain.dataset, which is missing; data.root is the run's own")
    if own and table.share is None and (shared := _shared_classes(config, table)) is not None:
        problems.append(
            f"pretrain would train on samples that clients hold ({shared}); hold some back with pretrain.share, such "
            "as 0.2, or leave those classes out of the federation with data.classes"
        )
    if not _same_head(config, table, own=own) and not table.new_head:
        problems.append(
            "pretrain.new_head must be true: pre-training is on other classes than the run, so that its last layer "
            "would mean something else"
        )
    return problems


def _shared_classes(config: RunConfig, table: PretrainTable) -> str | None:
    """Classes that both have, in words."""
    if table.classes is None:
        return "of all classes"
    shared = sorted(set(table.classes) & set(config.data.classes or table.classes))
    return f"of classes {', '.join(map(str, shared))}" if shared else None


def _same_head(config: RunConfig, table: PretrainTable, *, own: bool) -> bool:
    return own and (table.classes is None or table.classes == config.data.classes)


def federated_data(config: RunConfig, dataset: Dataset, *, held_back: bool = True) -> Dataset:
    """The data set as the federation has it: the recipe's classes and test samples, and not what the server trains on.

    Args:
        config: Of the run.
        dataset: All of it.
        held_back: Whether the training samples are those of all clients together, of which the server keeps its share.

    Raises:
        ConfigError: Classes that there are not, or nothing is left.
    """
    table, classes = config.pretrain, config.data.classes
    dataset = _tested(config, dataset)
    held = held_back and table is not None and table.weights is None and table.share is not None
    rows = pretraining_rows(config, dataset) if held else np.zeros(0, dtype=np.int64)
    if classes is None:
        return without(dataset, rows) if len(rows) else dataset
    kept = rows_of_classes(dataset.train.labels, classes)
    federated = of_classes(dataset, classes, where="data.classes")
    inside = np.flatnonzero(np.isin(kept, rows))
    return without(federated, inside) if len(inside) else federated


def _tested(config: RunConfig, dataset: Dataset) -> Dataset:
    """The data set with as many test samples as the recipe asks for, of the classes that it has."""
    wanted, classes = config.evaluation.samples, config.data.classes
    if wanted is None:
        return dataset
    labels = dataset.test.labels
    rows = np.arange(len(labels)) if classes is None else rows_of_classes(labels, classes)
    if wanted >= len(rows):
        return dataset
    rng = np.random.default_rng(derive_seed(config.seed, purpose="evaluation/samples"))
    return tested_by(dataset, np.sort(rng.choice(rows, wanted, replace=False)))


def pretraining_rows(config: RunConfig, dataset: Dataset) -> IntArray:
    """Numbers of the training samples that pre-training gets, ascending; the same for the same seed.

    Args:
        config: Of the run, with a [pretrain] table that trains.
        dataset: All of the data set that pre-training reads.

    Raises:
        ConfigError: Classes that there are not.
    """
    table = config.pretrain
    assert table is not None
    own = is_own(config, table)
    classes = table.classes or (config.data.classes if own else None) or range(dataset.classes)
    check_classes(dataset, classes, where="pretrain.classes")
    labels = dataset.train.labels
    rng = np.random.default_rng(derive_seed(config.seed, purpose="pretrain/samples"))
    chosen = []
    for each in classes:
        members = rng.permutation(rows_of_classes(labels, [each]))
        chosen.append(members if table.share is None else members[: max(1, round(table.share * len(members)))])
    rows = np.concatenate(chosen)
    if table.samples is not None:
        rows = rng.permutation(rows)[: table.samples]
    return np.sort(rows)
