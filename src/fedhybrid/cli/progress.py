"""What `fedhybrid run` shows while it works, on standard error: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedhybrid.units import format_seconds

if TYPE_CHECKING:  # the records bring torch, which --help should not wait for
    from fedhybrid.records import ClientRecord, RoundRecord, Summary

__all__ = ["Bars", "Lines", "round_bars"]

LINES_PER_RUN = 10


class _Figures:
    """Of each variant: the accuracy of its last test, the clock, and how many tasks failed."""

    def __init__(self) -> None:
        self._accuracy: dict[str, str] = {}
        self._failed: dict[str, int] = {}

    def of(self, label: str, record: RoundRecord) -> str:
        """After this round, which need not have been tested."""
        if record.accuracy is not None:
            self._accuracy[label] = f"{record.accuracy:.3f}"
        self._failed[label] = self._failed.get(label, 0) + record.failed
        parts = [f"accuracy {self._accuracy.get(label, 'not tested yet')}"]
        parts.append(f"clock {format_seconds(record.virtual_time_s)}")
        if self._failed[label]:
            parts.append(f"{self._failed[label]} task{'s' if self._failed[label] > 1 else ''} failed")
        return ", ".join(parts)


def round_bars(console: Console) -> Progress:
    """Bars that count rounds, or runs, each with its `figures` beside it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        console=console,
    )


@final
class Bars:
    """One bar for each variant, with its round, accuracy, virtual time and the tasks that failed."""

    def __init__(self, console: Console) -> None:
        self._bars = round_bars(console)
        self._tasks: dict[str, TaskID] = {}
        self._figures = _Figures()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        """Adds the variant's bar, at the round where it begins."""
        self._task(label, rounds)
        self._bars.update(self._tasks[label], total=rounds, completed=first_round)

    def on_stage(self, label: str, stage: str) -> None:
        """Shows the stage where the figures will be."""
        self._bars.update(self._task(label), figures=stage)

    def on_task(self, label: str, record: ClientRecord) -> None:
        """Nothing: a round counts its tasks."""

    def on_round(self, label: str, record: RoundRecord) -> None:
        """Moves the bar."""
        self._bars.update(self._task(label), advance=1, figures=self._figures.of(label, record))

    def on_end(self, label: str, summary: Summary) -> None:
        """Leaves the bar full."""
        self._bars.update(self._task(label), completed=summary.rounds)

    def _task(self, label: str, rounds: int | None = None) -> TaskID:
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label or "run", total=rounds, figures="")
        return self._tasks[label]


@final
class Lines:
    """At most ten lines or so for each variant, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rounds: dict[str, int] = {}
        self._figures = _Figures()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        """Learns how many rounds there are."""
        self._rounds[label] = rounds
        if first_round:
            self._say(f"{label or 'run'}: goes on after round {first_round}/{rounds}")

    def on_stage(self, label: str, stage: str) -> None:
        """Nothing: a stage is over before a log is read."""

    def on_task(self, label: str, record: ClientRecord) -> None:
        """Nothing: `clients.jsonl` has it."""

    def on_round(self, label: str, record: RoundRecord) -> None:
        """Says every tenth part of the run, and the last round."""
        rounds, figures = self._rounds[label], self._figures.of(label, record)
        done = record.round + 1
        if done % math.ceil(rounds / LINES_PER_RUN) == 0 or done == rounds:
            self._say(f"{label or 'run'}: round {done}/{rounds}, {figures}")

    def on_end(self, label: str, summary: Summary) -> None:
        """Nothing: the command ends with a table."""

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
