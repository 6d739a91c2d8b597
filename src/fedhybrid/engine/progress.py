"""What a run tells while it is going on; the command line draws it, a notebook may too."""

from __future__ import annotations

from typing import Protocol, final

from fedhybrid.records import ClientRecord, RoundRecord, Summary

__all__ = ["Progress", "Quiet"]


class Progress(Protocol):
    """Is called from the thread that called the run. `label` names the variant, "" where there is only one run."""

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        """The run is about to begin or, where `first_round` > 0, to go on; `rounds` is their number in all."""
        ...

    def on_stage(self, label: str, stage: str) -> None:
        """Something that takes seconds begins ("capturing the step", "planning", ...)."""
        ...

    def on_task(self, label: str, record: ClientRecord) -> None:
        """A client's task has ended."""
        ...

    def on_round(self, label: str, record: RoundRecord) -> None:
        """A round has ended and its record is written."""
        ...

    def on_end(self, label: str, summary: Summary) -> None:
        """The run is complete."""
        ...


@final
class Quiet:
    """Says nothing."""

    def on_start(self, label: str, *, first_round: int, rounds: int) -> None:
        """Nothing."""

    def on_stage(self, label: str, stage: str) -> None:
        """Nothing."""

    def on_task(self, label: str, record: ClientRecord) -> None:
        """Nothing."""

    def on_round(self, label: str, record: RoundRecord) -> None:
        """Nothing."""

    def on_end(self, label: str, summary: Summary) -> None:
        """Nothing."""
