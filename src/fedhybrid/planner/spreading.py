"""Where a loss would spread: what is made again from a tensor that a codec has changed.

The errors that packs are known by hold where the loss stays with the tensor. A gate that is recomputed from rounded
numbers flips, for example, and one batch norm that is recomputed changes all that follow. Plans with a cap on their
error therefore make nothing again from what has lost something.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import cached_property
from typing import final

from fedhybrid.planner.problem import FIRST_PACK, KEEP, Problem

__all__ = ["Spreading"]


@final
class Spreading:
    """Who is made again from whom.

    Attributes:
        any_lossy: Whether some option changes its storage.
        sources: Candidate -> the candidates that making it again would read, straight or through intermediates.
        dependents: Candidate -> the candidates that have it among their sources.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem, self._packs = problem, problem.pack_by_option
        self.any_lossy = any(pack.error > 0 for pack in problem.packs)

    @cached_property
    def sources(self) -> dict[int, set[int]]:
        """See the class; looked up when first asked for, since most plans have nothing lossy to choose."""
        kept = self._problem.uses.keys() & set(self._problem.candidates)
        return {storage: _sources(self._problem, storage, kept) for storage in self._problem.candidates}

    @cached_property
    def dependents(self) -> dict[int, set[int]]:
        """See the class."""
        found: dict[int, set[int]] = {storage: set() for storage in self._problem.candidates}
        for storage, sources in self.sources.items():
            for source in sources:
                found[source].add(storage)
        return found

    def lossy(self, storage: int, option: int) -> bool:
        """Whether an option changes the storage."""
        pack = self._packs.get((storage, option))
        return pack is not None and pack.error > 0

    def forbids(self, subject: int, option: int, decisions: Mapping[int, int]) -> bool:
        """Whether a decision beside these would make something again from what a codec has changed."""
        if option == KEEP or not self.any_lossy or subject not in self.sources:
            return False
        if option >= FIRST_PACK:
            made_again = any(KEEP < decisions.get(d, KEEP) < FIRST_PACK for d in self.dependents[subject])
            return made_again and self.lossy(subject, option)
        return any(self.lossy(source, decisions.get(source, KEEP)) for source in self.sources[subject])


def _sources(problem: Problem, storage: int, kept: Set[int]) -> set[int]:
    stack, seen = [storage], {storage}
    while stack:
        replay = problem.replays.get(stack.pop())
        fresh = set(() if replay is None else replay.reads) - seen
        seen |= fresh
        stack += fresh - kept
    return (seen & kept) - {storage}
