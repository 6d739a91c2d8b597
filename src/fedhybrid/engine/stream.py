"""A class-incremental stream: the classes in a drawn order, some at a time, each for so many rounds.

What clients may look at in a round are their samples of the task's classes; what the model is asked is every class that
has come so far, with the scores of the others left out (it has no such outputs yet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhybrid.errors import ConfigError
from fedhybrid.records import RoundRecord, StreamTask
from fedhybrid.seeds import derive_seed

__all__ = ["Stream", "average_incremental_accuracy", "forgetting"]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Which classes come when.

    Attributes:
        tasks: The classes of each task, in order.
        rounds_each: Rounds of a task; the last one goes on until the run ends, if that takes more.
    """

    tasks: tuple[tuple[int, ...], ...]
    rounds_each: int

    @classmethod
    def drawn(cls, *, classes: int, tasks: int, rounds_each: int, seed: int) -> Stream:
        """All classes in a random order, dealt out to the tasks as evenly as it goes, larger tasks first.

        Raises:
            ConfigError: More tasks than classes.
        """
        if tasks > classes:
            raise ConfigError(f"stream.tasks must be at most the data set's {classes} classes, got {tasks}")
        order = np.random.default_rng(derive_seed(seed, purpose="stream")).permutation(classes)
        parts = np.array_split(order, tasks)
        return cls(tasks=tuple(tuple(map(int, part)) for part in parts), rounds_each=rounds_each)

    def at(self, round_index: int) -> StreamTask:
        """The task of a round.

        >>> Stream(tasks=((2, 0), (1,)), rounds_each=3).at(3).seen
        (2, 0, 1)
        """
        index = min(round_index // self.rounds_each, len(self.tasks) - 1)
        inside = round_index - index * self.rounds_each
        return StreamTask(
            index=index,
            count=len(self.tasks),
            classes=self.tasks[index],
            seen=tuple(each for task in self.tasks[: index + 1] for each in task),
            begins=inside == 0,
            ends=inside == self.rounds_each - 1,
        )


def average_incremental_accuracy(rounds: Sequence[RoundRecord]) -> float | None:
    """Mean over the tasks of the accuracy on all classes seen, at each task's last test; None without a stream.

    Source: S.-A. Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017,
    https://arxiv.org/abs/1611.07725, section 4.
    """
    tested = (record for record in rounds if record.task is not None and record.accuracy is not None)
    last = {record.task: record.accuracy or 0.0 for record in tested}
    return sum(last.values()) / len(last) if last else None


def forgetting(rounds: Sequence[RoundRecord]) -> float | None:
    """Mean over all tasks but the last of what each has lost since it was known best; None before a second task.

    Source: A. Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018, https://arxiv.org/abs/1801.10112,
    section 3.2; measured at each task's last test.
    """
    at_end = {
        record.task: record.task_accuracies
        for record in rounds
        if record.task is not None and record.task_accuracies is not None
    }
    if len(at_end) < 2:
        return None
    *before, last = (at_end[task] for task in sorted(at_end))
    lost = [
        max(known[task] for known in before if len(known) > task) - last[task]
        for task in range(len(last) - 1)
        if any(len(known) > task for known in before)
    ]
    return sum(lost) / len(lost) if lost else None
