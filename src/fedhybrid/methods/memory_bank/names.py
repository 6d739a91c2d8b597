"""Names of the steps of methods with a memory; all that is needed to build one is in its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["KEEP", "LEARN", "LOOK", "TUNE", "StepName"]

LOOK = "look"  # features of exemplars and samples; nothing is trained
LEARN = "learn"  # everything is trained
KEEP = "keep"  # the same, and the encoder stays near the one before the task
TUNE = "tune"  # everything but the encoder


@final
@dataclass(frozen=True, kw_only=True)
class StepName:
    """What a client's step is of.

    Attributes:
        kind: One of the above.
        seen: Classes so far: the head has as many rows.
        each: Exemplars of a class that the step's memory has room for.
        batch: Samples of a batch, where the step must know which entry is made of which of them; else 0.
    """

    kind: str
    seen: int
    each: int
    batch: int = 0

    def __str__(self) -> str:
        """Such as "keep-4-20-16".

        >>> str(StepName(kind=KEEP, seen=4, each=20, batch=16)), str(StepName(kind=LOOK, seen=4, each=20))
        ('keep-4-20-16', 'look-4-20')
        """
        batch = (str(self.batch),) if self.batch else ()
        return "-".join((self.kind, str(self.seen), str(self.each), *batch))

    @classmethod
    def read(cls, text: str) -> StepName:
        """The other way round.

        >>> StepName.read("keep-4-20-16").batch
        16
        """
        kind, seen, each, *batch = text.split("-")
        return cls(kind=kind, seen=int(seen), each=int(each), batch=int(batch[0]) if batch else 0)
