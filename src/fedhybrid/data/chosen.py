"""Part of a data set: some of its samples, some of its classes. The samples themselves are not copied."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fedhybrid.data.split import Dataset, Indices, Split
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray

__all__ = ["ChosenSplit", "check_classes", "of_classes", "rows_of_classes", "tested_by", "without"]


@final
class ChosenSplit:
    """Some samples of another split, in the given order; classes may be left out, and the others get new numbers."""

    def __init__(self, split: Split, rows: IntArray, classes: Sequence[int] | None = None) -> None:
        """Holds the numbers of the samples.

        Args:
            split: Where they are.
            rows: Their numbers there.
            classes: The classes of all of these samples, in the order of their new numbers; None leaves labels alone.
        """
        self.split, self.rows, self.classes = split, torch.from_numpy(rows.astype(np.int64)), classes

    @cached_property
    def labels(self) -> Int64[Tensor, " n"]:
        """Class of each sample."""
        found = self.split.labels.index_select(0, self.rows)
        return found if self.classes is None else _renumbered(found, self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.split.input_shape

    def batch(self, indices: Indices) -> tuple[Tensor, Int64[Tensor, " b"]]:
        """The chosen samples and their labels."""
        x, y = self.split.batch(self.rows[indices])
        return x, y if self.classes is None else _renumbered(y, self.classes)

    def __len__(self) -> int:
        return self.rows.shape[0]


def rows_of_classes(labels: Tensor, classes: Sequence[int]) -> IntArray:
    """Numbers of the samples of these classes, ascending."""
    return np.flatnonzero(np.isin(labels.numpy(), np.array(classes, dtype=np.int64)))


def check_classes(dataset: Dataset, classes: Sequence[int], *, where: str) -> None:
    """That the data set has these classes.

    Args:
        dataset: Whose classes they should be.
        classes: Their numbers.
        where: What the user calls this list.

    Raises:
        ConfigError: It has not, with those that are unknown.
    """
    if unknown := [each for each in classes if not 0 <= each < dataset.classes]:
        raise ConfigError(
            f"{where} must be classes of {dataset.name}, 0 to {dataset.classes - 1}; found "
            f"{', '.join(map(str, unknown))}"
        )


def of_classes(dataset: Dataset, classes: Sequence[int], *, where: str) -> Dataset:
    """The data set with the samples of some classes only; the first of them becomes class 0, and so on.

    Args:
        dataset: All of it.
        classes: Which; no number twice.
        where: What the user calls this list, for messages.

    Raises:
        ConfigError: No such class, or nobody has samples of it.
    """
    check_classes(dataset, classes, where=where)
    halves = [(split, rows_of_classes(split.labels, classes)) for split in (dataset.train, dataset.test)]
    if not all(len(rows) for _, rows in halves):
        raise ConfigError(f"{where}: {dataset.name} has no samples of these classes to train on or to test with")
    (train, train_rows), (test, test_rows) = halves
    return replace(
        dataset,
        name=f"{dataset.name}, classes {', '.join(map(str, classes))}",
        train=ChosenSplit(train, train_rows, classes),
        test=ChosenSplit(test, test_rows, classes),
        classes=len(classes),
        natural_ids=None if dataset.natural_ids is None else dataset.natural_ids[train_rows],
        test_ids=None if dataset.test_ids is None else dataset.test_ids[test_rows],
    )


def without(dataset: Dataset, rows: IntArray) -> Dataset:
    """The data set without these training samples."""
    left = np.setdiff1d(np.arange(len(dataset.train)), rows)
    ids = None if dataset.natural_ids is None else dataset.natural_ids[left]
    return replace(dataset, train=ChosenSplit(dataset.train, left), natural_ids=ids)


def tested_by(dataset: Dataset, rows: IntArray) -> Dataset:
    """The data set with these test samples alone."""
    ids = None if dataset.test_ids is None else dataset.test_ids[rows]
    return replace(dataset, test=ChosenSplit(dataset.test, rows), test_ids=ids)


def _renumbered(labels: Tensor, classes: Sequence[int]) -> Tensor:
    numbers = torch.zeros(max(classes) + 1, dtype=torch.int64)
    numbers[torch.tensor(classes)] = torch.arange(len(classes))
    return numbers[labels]
