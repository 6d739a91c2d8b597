"""What `fedhybrid compare` shows while it works: how many runs are done, and on a terminal the ones under way."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from rich.console import Console
from rich.progress import TaskID

from fedhybrid.cli.progress import round_bars
from fedhybrid.units import format_seconds

if TYPE_CHECKING:  # the records bring torch, which --help should not wait for
    from fedhybrid.records import ClientRecord, RoundRecord, Summary

__all__ = ["ManyBars", "ManyLines"]


@final
class ManyBars:
    """One bar for all runs, and below it one for each run under way."""

    def __init__(self, console: Console, runs: int) -> None:
        self._bars = round_bars(console)
        self._all = self._bars.add_task("runs", total=runs, figures="")
        self._tasks: dict[str, TaskID] = {}
        self._failed = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        """Adds the run's bar, unless the run is complete already."""
        if first_round < rounds:
            self._tasks[label] = self._bars.add_task(label, total=rounds, completed=first_round, figures="")

    def on_stage(self, label: str, stage: str) -> None:
        """Shows the stage where the figures will be."""
        if label in self._tasks:
            self._bars.update(self._tasks[label], figures=stage)

    def on_task(self, label: str, record: ClientRecord) -> None:
        """Nothing: a round counts its tasks."""

    def on_round(self, label: str, record: RoundRecord) -> None:
        """Moves the run's bar."""
        clock = f"clock {format_seconds(record.virtual_time_s)}"
        figures = clock if record.accuracy is None else f"accuracy {record.accuracy:.3f}, {clock}"
        self._bars.update(self._tasks[label], advance=1, figures=figures)

    def on_end(self, label: str, summary: Summary) -> None:
        """Takes the run's bar away and moves that of all runs."""
        if label in self._tasks:
            self._bars.remove_task(self._tasks.pop(label))
        self._bars.update(self._all, advance=1)

    def on_failure(self, label: str, error: Exception) -> None:
        """Takes the run's bar away, and says above the bars why."""
        if label in self._tasks:
            self._bars.remove_task(self._tasks.pop(label))
        self._failed += 1
        self._bars.update(self._all, figures=f"{self._failed} failed")
        self._bars.console.print(_failure(label, error), markup=False, highlight=False, soft_wrap=True)


@final
class ManyLines:
    """A line for each run that ends, and one for those that were complete before."""

    def __init__(self, console: Console, runs: int) -> None:
        self._console, self._runs = console, runs
        self._complete: set[str] = set()
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        """Says that a run goes on, or how many were complete before the first that is not."""
        if first_round == rounds:
            self._complete.add(label)
            return
        if self._complete and self._done == len(self._complete):
            self._say(f"{self._done}/{self._runs} runs were complete already")
            self._complete.clear()
        if first_round:
            self._say(f"{label}: goes on after round {first_round}/{rounds}")

    def on_stage(self, label: str, stage: str) -> None:
        """Nothing: a stage is over before a log is read."""

    def on_task(self, label: str, record: ClientRecord) -> None:
        """Nothing: `clients.jsonl` has it."""

    def on_round(self, label: str, record: RoundRecord) -> None:
        """Nothing: a comparison has too many."""

    def on_end(self, label: str, summary: Summary) -> None:
        """One line."""
        self._done += 1
        if label not in self._complete:
            figures = f"accuracy {summary.final_accuracy:.3f}, clock {format_seconds(summary.virtual_time_s)}"
            self._say(f"{self._done}/{self._runs} {label}: {figures}")

    def on_failure(self, label: str, error: Exception) -> None:
        """One line, at once: the others may take hours."""
        self._say(_failure(label, error))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _failure(label: str, error: Exception) -> str:
    """The first line of what went wrong; all of it comes at the end."""
    first = str(error).strip().partition("\n")[0]
    for named in (f"{label}: ", f"variant {label!r} "):
        first = first.removeprefix(named)
    return f"FAILED {label}: {first}; the other runs go on"
