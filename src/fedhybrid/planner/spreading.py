"""Where a loss would spread: what is made again from a tensor that a codec has changed.

The errors that packs are known by hold where the loss stays with the tensor. A gate that is recomputed from rounded
numbers flips, for example, and one batch norm that is recomputed changes all that follow. Plans with a cap on their
error therefore make nothing again from what has lost something.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from fedhybrid.planner.problem import FIRST_PACK, KEEP, Problem

__all__ = ["Spreading"]


@final
class Spreading:
    """Who is made again from whom.

    Attributes:
        sources: Candidate -> the candidates that making it again would read, straight or through intermediates.
        dependents: Candidate -> the candidates that have it among their sources.
    """

    def __init__(self, problem: Problem) -> None:
        self._packs = problem.pack_by_option
        self.sources = {storage: _sources(problem, storage) for storage in problem.candidates}
        self.dependents: dict[int, set[int]] = {storage: set() for storage in problem.candidates}
        for storage, sources in self.sources.items():
            for source in sources:
                self.dependents[source].add(storage)

    def lossy(self, storage: int, option: int) -> bool:
        """Whether an option changes the storage."""
        pack = self._packs.get((storage, option))
        return pack is not None and pack.error > 0

    def forbids(self, subject: int, option: int, decisions: Mapping[int, int]) -> bool:
        """Whether a decision beside these would make something again from what a codec has changed."""
        if option == KEEP or subject not in self.sources:
            return False
        if option >= FIRST_PACK:
            made_again = any(KEEP < decisions.get(d, KEEP) < FIRST_PACK for d in self.dependents[subject])
            return made_again and self.lossy(subject, option)
        return any(self.lossy(source, decisions.get(source, KEEP)) for source in self.sources[subject])


def _sources(problem: Problem, storage: int) -> set[int]:
    kept = problem.uses.keys() & set(problem.candidates)
    stack, seen = [storage], {storage}
    while stack:
        replay = problem.replays.get(stack.pop())
        fresh = set(() if replay is None else replay.reads) - seen
        seen |= fresh
        stack += fresh - kept
    return (seen & kept) - {storage}
